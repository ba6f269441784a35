"""trackio: a local SQLite file that needs no account; in the run that the trainer has, or in one of our own.

Scalars and texts only: trackio's page draws its own curves. `step=` is never passed, as the trainer's own callback does
not pass it either: rows carry "train/global_step".
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from headwatch.sinks.base import PREFIX, STEP_KEY, FailureBreaker, Row, Sink

logger = logging.getLogger(__name__)


class TrackioSink(Sink):
    """Show probes in trackio. Nothing here raises into the training.

    Args:
        project, name, config: of the run that is made where the trainer has none when the first probe is logged.
    """

    def __init__(
        self, project: str = "headwatch", name: str | None = None, config: Mapping[str, object] | None = None
    ) -> None:
        self._options: dict[str, Any] = {"project": project, "name": name, "config": dict(config or {})}
        self._own_run: Any = None
        self._breaker = FailureBreaker("logging to trackio")

    def show(self, row: Row) -> None:
        """Log one row per probe."""
        values = row.scalars | row.texts
        if self._breaker.out or not values:
            return
        try:
            self._run().log({PREFIX + name: value for name, value in values.items()} | {STEP_KEY: row.step})
        except Exception as error:
            self._breaker.failed(error)

    def finish(self, timeout: float = 30.0) -> None:
        """Flush, and finish the run if this sink started it."""
        if self._own_run is None:
            return
        try:
            self._own_run.finish()
            sys.modules["trackio"].context_vars.current_run.set(None)
        except Exception as error:
            self._breaker.failed(error)
        self._own_run = None

    def _run(self) -> Any:
        """The live run; else one of our own, which continues the previous one."""
        import trackio

        run = trackio.context_vars.current_run.get()
        if run is None:
            run = self._own_run = trackio.init(**self._options, resume="allow", embed=False)
        self._options |= {
            "project": run.project,
            "name": run.name,
        }  # the trainer may finish its run before the last row
        return run
