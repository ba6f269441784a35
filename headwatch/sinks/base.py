"""Interface of the services that show a run. The run folder is the record; a sink only shows it and may fail."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

PREFIX = "headwatch/"
STEP_KEY = "train/global_step"  # the x axis that transformers' own callbacks use

Scalars = Mapping[str, float | int | None]
Figure = dict[str, Any]  # plotly's JSON: {"data": [...], "layout": {...}}
Texts = Mapping[str, str]
Figures = Mapping[str, Figure] | Callable[[], Mapping[str, Figure]]


@dataclass(frozen=True)
class Notice:
    """A message for the service's own alert call: one line, its title, and whether it is a warning."""

    title: str
    text: str
    is_warning: bool = True


@dataclass
class Row:
    """One probe: finite scalars, texts, optional figures, summary and notices (see Sink.log)."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    figures: Figures | None = None
    final: bool = False
    summary: Texts | Callable[[], Texts] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()


class Sink:
    """Base class; shows nothing. Subclasses implement `show`.

    A sink never raises, even if its service fails.
    """

    def log(
        self,
        step: int,
        scalars: Scalars,
        figures: Figures | None = None,
        *,
        texts: Texts | None = None,
        final: bool = False,
        summary: Texts | Callable[[], Texts] | None = None,
        notices: Iterable[Notice] = (),
    ) -> None:
        """Show one probe: scalars, texts and, if the sink draws them, figures.

        Args:
            step: the trainer's global step that the probe describes.
            scalars: by name, without a prefix ("active", "cohort/100"); None and non-finite values are left out.
            figures: plotly JSON by name, or a function that draws them. The function may run later and in another
                thread, so it must own its data.
            texts: short lines by name ("alerts_text"); an empty line replaces an earlier one.
            final: this is the last probe of the run; its figures are always shown.
            summary: what the run has come to, one line by name (a family), for services with a summary of a run; or a
                function that writes it, under the same conditions as that of the figures.
            notices: new alerts, for services with an alert call of their own.
        """
        self.show(Row(step, finite(scalars), dict(texts or {}), figures, final, summary or {}, tuple(notices)))

    def show(self, row: Row) -> None:
        """Show what the service supports of one row."""

    def finish(self, timeout: float = 30.0) -> None:
        """Deliver pending rows within `timeout` seconds; may be called twice."""

    def run_info(self) -> dict[str, str | None] | None:
        """Id, project, entity and url of the service's run, for the manifest; None if there is none."""
        return None


class FailureBreaker:
    """Circuit breaker: warns on the first failure and opens after `limit` failures.

    Args:
        what: the action that may fail, as the warning names it ("logging to W&B").
        limit: failures after which the action is no longer tried.
    """

    def __init__(self, what: str, limit: int = 3) -> None:
        self.what, self.limit, self.failures = what, limit, 0

    @property
    def is_open(self) -> bool:
        """Whether the limit is reached: the action must not be tried again."""
        return self.failures >= self.limit

    def record(self, error: Exception | str) -> None:
        """Count a failure; the first one is logged."""
        self.failures += 1
        if self.failures == 1:
            reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
            logger.warning(
                "headwatch: %s failed (%s). Training continues and the run folder is complete; "
                "disabled after %d failures.",
                *(self.what, reason, self.limit),
            )


def finite(scalars: Scalars) -> dict[str, float]:
    """The finite scalars, as Python numbers."""
    return {name: float(value) for name, value in scalars.items() if value is not None and math.isfinite(value)}
