"""trackio: a local SQLite file, no account needed; in the trainer's run or in a run of our own.

Scalars and texts only: trackio draws its own curves. Like the trainer's own callback, it never passes `step=`; each row
has a "train/global_step".
"""

import sys
from collections.abc import Mapping
from typing import Any

from headwatch.sinks.base import PREFIX, STEP_KEY, FailureBreaker, Row, Sink


class TrackioSink(Sink):
    """Show probes in trackio.

    Args:
        project, name, config: of the run that is started if the trainer has none at the first probe.
    """

    def __init__(
        self, project: str = "headwatch", name: str | None = None, config: Mapping[str, object] | None = None
    ) -> None:
        self._options: dict[str, Any] = {"project": project, "name": name, "config": dict(config or {})}
        self._own_run: Any = None
        self._breaker = FailureBreaker("logging to trackio")

    def show(self, row: Row) -> None:
        """Log one probe as one row."""
        values = row.scalars | row.texts
        if self._breaker.is_open or not values:
            return
        try:
            self._run().log({PREFIX + name: value for name, value in values.items()} | {STEP_KEY: row.step})
        except Exception as error:
            self._breaker.record(error)

    def finish(self, timeout: float = 30.0) -> None:
        """Flush, and finish the run if this sink started it."""
        if self._own_run is None:
            return
        try:
            self._own_run.finish()
            current = sys.modules["trackio"].context_vars.current_run
            if current.get() is self._own_run:
                current.set(None)
        except Exception as error:
            self._breaker.record(error)
        self._own_run = None

    def _run(self) -> Any:
        """The active run; if there is none, start one, which continues our previous one."""
        import trackio

        run = trackio.context_vars.current_run.get() or self._own_run  # ours may have started in another context
        if run is None:
            run = self._own_run = trackio.init(**self._options, resume="allow", embed=False)
        # The trainer may finish its run before our last row: a run of our own then continues it.
        self._options |= {"project": run.project, "name": run.name}
        return run
