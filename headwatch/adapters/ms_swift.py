"""ms-swift: register the callback under a name. In a file plugin.py:

    from headwatch.adapters.ms_swift import register
    register(every=100)

and on the command line: --external_plugins plugin.py --callbacks headwatch
"""

from collections.abc import MutableMapping
from typing import Any

from headwatch.adapters.options import callback_from
from headwatch.callback import HeadWatchCallback
from headwatch.errors import UserError


def register(name: str = "headwatch", callbacks_map: MutableMapping[str, Any] | None = None, **options: Any) -> None:
    """Add the callback to ms-swift's `callbacks_map`, whose entries are called as `entry(args, trainer)`.

    source: swift.callbacks.mapping and SwiftMixin._get_callbacks (ms-swift 3602360, August 2026).

    Args:
        name: the name for --callbacks.
        callbacks_map: the map; None is ms-swift's own.
        options: the arguments of `HeadWatchCallback`.

    Raises:
        UserError: an unknown option, an invalid value, or ms-swift has no `callbacks_map`.
    """
    callback_from(options)

    def entry(args: Any, trainer: Any) -> HeadWatchCallback:
        return callback_from(options, getattr(getattr(trainer, "template", None), "tokenizer", None))

    known = _own_map() if callbacks_map is None else callbacks_map
    known[name] = entry


def _own_map() -> MutableMapping[str, Any]:
    try:
        from swift.callbacks import callbacks_map
    except ImportError as error:
        raise UserError(f"register() needs ms-swift with swift.callbacks.callbacks_map: {error}") from error
    found: MutableMapping[str, Any] = callbacks_map
    return found
