"""Where a run's numbers and figures are shown. The run folder is the record; a sink only shows it and may fail."""

from collections.abc import Callable, Mapping
from typing import Any

Scalars = Mapping[str, float | int | None]
Figure = dict[str, Any]  # plotly's JSON: {"data": [...], "layout": {...}}
Figures = Mapping[str, Figure] | Callable[[], Mapping[str, Figure]]


class Sink:
    """A sink that shows nothing, the base of the others. No service that is away or fails makes a sink raise."""

    def log(self, step: int, scalars: Scalars, figures: Figures | None = None, *, final: bool = False) -> None:
        """Show one probe: its scalars and, where the sink wants them, its figures.

        Args:
            step: the trainer's global step that the probe describes.
            scalars: by name, without a prefix ("active", "cohort/100"); None and what is not finite are left out.
            figures: plotly JSON by name, or a function that draws them. It may be called later and in another thread:
                it must own what it draws from (a snapshot), not read a history that goes on growing.
            final: this is known to be the run's last probe: its figures are not thinned out.
        """
        self.scalars(step, scalars)
        for name, figure in (figures() if callable(figures) else figures or {}).items():
            self.figure(step, name, figure)

    def scalars(self, step: int, scalars: Scalars) -> None:
        """Show the scalars of a step."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Show one figure of a step."""

    def finish(self, timeout: float = 30.0) -> None:
        """Deliver what is still on its way, waiting at most `timeout` seconds; calling it twice does no harm."""

    def run_info(self) -> dict[str, str | None] | None:
        """What the manifest keeps to find the run again: id, project, entity, url; None where there is no run."""
        return None
