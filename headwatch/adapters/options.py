"""The callback from plain values, as a framework's configuration file has them."""

from collections.abc import Mapping
from typing import Any

from headwatch.callback import HeadWatchCallback
from headwatch.monitor.nested_options import read_settings
from headwatch.monitor.settings import WatchSettings


def callback_from(options: Mapping[str, Any] | None, tokenizer: Any = None) -> HeadWatchCallback:
    """The callback with these options.

    Args:
        options: the arguments of `HeadWatchCallback` by name, groups as mappings; None for the defaults.
        tokenizer: tokenizer of the generated pairs; None is the trainer's.

    Raises:
        UserError: an unknown option, or an invalid value.
    """
    return HeadWatchCallback.from_settings(read_settings(WatchSettings, _plain(options or {}), "headwatch"), tokenizer)


def _plain(value: Any) -> Any:
    """Mappings as dicts: some frameworks' mappings return None for a missing name."""
    return {name: _plain(own) for name, own in value.items()} if isinstance(value, Mapping) else value
