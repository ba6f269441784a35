"""An Axolotl plugin. In the YAML file:

plugins:
  - headwatch.adapters.axolotl.HeadWatchPlugin
headwatch:
  every: 100
"""

from typing import Any

from pydantic import BaseModel

from headwatch.adapters.options import callback_from
from headwatch.callback import HeadWatchCallback

try:
    from axolotl.integrations.base import BasePlugin as _BasePlugin
except ImportError:  # the class below is then importable, for tests and documentation
    _BasePlugin = object


class HeadWatchArgs(BaseModel):
    """What Axolotl's configuration accepts in addition; without this it would drop the block `headwatch`.

    Attributes:
        headwatch: the arguments of `HeadWatchCallback`.
    """

    headwatch: dict[str, Any] | None = None


class HeadWatchPlugin(_BasePlugin):
    """Adds a `HeadWatchCallback` to Axolotl's trainer.

    source: axolotl.integrations.base.BasePlugin (067b021, July 2026), whose hooks these are.
    """

    def register(self, cfg: Any) -> None:
        """Check the options before the model is loaded.

        Raises:
            UserError: an unknown option, or an invalid value.
        """
        callback_from(cfg.get("headwatch"))

    def get_input_args(self) -> str:
        """Dotted name of the model of the accepted options."""
        return f"{HeadWatchArgs.__module__}.{HeadWatchArgs.__qualname__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[HeadWatchCallback]:
        """The callback, with the options of the block `headwatch` and the trainer's tokenizer."""
        return [callback_from(cfg.get("headwatch"), getattr(trainer, "processing_class", None))]
