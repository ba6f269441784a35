"""Where a run's numbers and figures are shown. The run folder is the record; a sink only shows it and may fail."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

PREFIX = "headwatch/"
STEP_KEY = "train/global_step"  # the x axis that transformers' own callbacks use

Scalars = Mapping[str, float | int | None]
Figure = dict[str, Any]  # plotly's JSON: {"data": [...], "layout": {...}}
Texts = Mapping[str, str]
Figures = Mapping[str, Figure] | Callable[[], Mapping[str, Figure]]


@dataclass
class Row:
    """One probe as a sink shows it: finite scalars, texts and, where there are some, figures (see Sink.log)."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    figures: Figures | None = None
    final: bool = False


class Sink:
    """A sink that shows nothing, the base of the others, which say in `show` how they show a row.

    No service that is away or fails makes a sink raise.
    """

    def log(
        self,
        step: int,
        scalars: Scalars,
        figures: Figures | None = None,
        *,
        texts: Texts | None = None,
        final: bool = False,
    ) -> None:
        """Show one probe: its scalars and texts and, where the sink wants them, its figures.

        Args:
            step: the trainer's global step that the probe describes.
            scalars: by name, without a prefix ("active", "cohort/100"); None and what is not finite are left out.
            figures: plotly JSON by name, or a function that draws them. It may be called later and in another thread:
                it must own what it draws from (a snapshot), not read a history that goes on growing.
            texts: short lines by name ("alerts_text"); empty ones too, so that what is no longer so is taken back.
            final: this is known to be the run's last probe: its figures are not thinned out.
        """
        self.show(Row(step, finite(scalars), dict(texts or {}), figures, final))

    def scalars(self, step: int, scalars: Scalars) -> None:
        """Scalars alone."""
        self.log(step, scalars)

    def text(self, step: int, name: str, text: str) -> None:
        """One text alone."""
        self.log(step, {}, texts={name: text})

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """One figure alone; where figures are thinned out it counts as a probe."""
        self.log(step, {}, {name: figure})

    def show(self, row: Row) -> None:
        """Show one row, whatever of it the service can show."""

    def finish(self, timeout: float = 30.0) -> None:
        """Deliver what is still on its way, waiting at most `timeout` seconds; calling it twice does no harm."""

    def run_info(self) -> dict[str, str | None] | None:
        """What the manifest keeps to find the run again: id, project, entity, url; None where there is no run."""
        return None


class Patience:
    """Warns of the first failure of something; after `limit` failures it is out."""

    def __init__(self, what: str, limit: int = 3) -> None:
        self.what, self.limit, self.failures = what, limit, 0

    @property
    def out(self) -> bool:
        """Whether it is no longer to be tried."""
        return self.failures >= self.limit

    def failed(self, error: Exception | str) -> None:
        """Count one more failure."""
        self.failures += 1
        if self.failures == 1:
            said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
            logger.warning(
                "headwatch: %s failed (%s). Training goes on and the run folder has everything; "
                "after %d failures it is no longer tried.",
                *(self.what, said, self.limit),
            )


def finite(scalars: Scalars) -> dict[str, float]:
    """The scalars that can be drawn, as Python numbers."""
    return {name: float(value) for name, value in scalars.items() if value is not None and math.isfinite(value)}
