"""Weights & Biases: one row a probe, in the run that the training already has or in one of our own.

Why it is written this way (measured with wandb 0.31):
- `step=` is never passed: W&B drops a row whose step lies behind its own counter, and TRL's profiling rows advance that
  counter. The x axis comes from a `train/global_step` in the row and one `define_metric`.
- No wandb.Table and no wandb.plot.*: each is a blocking call to the server. Scalars and Plotly figures are not.
- A row's scalars and figures must reach `run.log` together, and drawing must not hold up the training: so one daemon
  thread draws and logs whole rows, in order.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from headwatch.errors import UserError
from headwatch.io.plain_json import plain
from headwatch.sinks.base import PREFIX, STEP_KEY, Patience, Row, Sink
from headwatch.sinks.figure_budget import Budget
from headwatch.sinks.wandb_run import existing_run, finish_run, run_info, start_run

logger = logging.getLogger(__name__)

MAX_WAITING = 32  # rows, each a probe: more means that W&B hangs


@dataclass
class _Bound(Row):
    """A row with the run that it is for, bound when it is handed over: a hyper-parameter search goes on to another."""

    run: Any = None


class WandbSink(Sink):
    """Show probes in Weights & Biases. Nothing here raises into the training or waits for a server.

    Args:
        mode: "auto" uses the run that exists when a probe is logged, whoever made it, and makes none (probes that come
            before there is a run are held). "start" makes one when there is none by then: offline if need be.
        project, name, config: of the run that "start" makes; an existing run keeps its own.
        run_id, entity: the run that "start" continues, when training resumes from a checkpoint.
        media_limit: upper bound of the figures logged in the whole run; W&B limits a run to 1,000 files.
    """

    def __init__(
        self,
        mode: str = "auto",
        *,
        project: str | None = None,
        name: str | None = None,
        config: Mapping[str, object] | None = None,
        run_id: str | None = None,
        entity: str | None = None,
        media_limit: int = 150,
    ) -> None:
        if mode not in ("auto", "start"):
            raise UserError(f"wandb={mode!r}: use 'auto' (the run that exists), 'start' (or a new one) or 'off'")
        self._may_start = mode == "start"
        self._start_options = (project, name, config, run_id, entity)
        self._run: Any = None
        self._own_run: Any = None
        self._held: deque[Row] = deque(maxlen=MAX_WAITING)
        self._rows: queue.Queue[_Bound | None] = queue.Queue(maxsize=MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._finished = False
        self._budget = Budget(media_limit)
        self._skipped: _Bound | None = None  # the latest probe, if its figures were not shown
        self._logging = Patience("logging to W&B")
        self._drawing = Patience("drawing figures for W&B")

    def show(self, row: Row) -> None:
        """Hand over one probe as one row; costs the training microseconds. A text is a plain string, no table."""
        if self._finished or self._logging.out:
            return
        self._held.append(row)
        self._hand_over()

    def run_info(self) -> dict[str, str | None] | None:
        """The run's id, project, entity and url (the last two None offline); None without a run that keeps anything."""
        run = self._current_run()
        return None if run is None or getattr(run, "disabled", False) else run_info(run)

    def finish(self, timeout: float = 30.0) -> None:
        """Deliver the rows on their way, then finish the run if this sink made it: each within `timeout` seconds."""
        if self._finished:
            return
        self._hand_over()
        self._finished = True
        if self._held:
            logger.info("headwatch: there was no W&B run to show the probes in; the run folder has them.")
        if self._thread is not None:
            try:
                self._rows.put(None, timeout=timeout)
                self._thread.join(timeout)
            except queue.Full:
                pass
            if self._thread.is_alive():
                logger.warning("headwatch: W&B took more than %g s; %d rows are left out.", timeout, self._rows.qsize())
        if self._own_run is not None:
            finish_run(self._own_run, timeout)

    # ---- the training's thread

    def _hand_over(self) -> None:
        """Give the held rows to the thread, as soon as there is a run."""
        if not self._held or (run := self._current_run()) is None:
            return
        if getattr(run, "disabled", False):
            self._held.clear()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver, name="headwatch-wandb", daemon=True)
            self._thread.start()
        while self._held:
            row = _Bound(**vars(self._held.popleft()), run=run)
            try:
                self._rows.put_nowait(row)
            except queue.Full:
                self._logging.failed(f"{MAX_WAITING} rows wait for it; the one of step {row.step} is left out")

    def _current_run(self) -> Any:
        """The run to log to, None while there is none. One that takes the place of another is prepared afresh."""
        run = existing_run()
        if run is None and self._may_start:
            run = self._own_run = start_run(*self._start_options)
            self._may_start = False
        if run is not None and run is not self._run:
            self._run = run
            try:
                run.define_metric(PREFIX + "*", step_metric=STEP_KEY)
            except Exception as error:
                self._logging.failed(error)
        return self._run

    # ---- the sink's own thread

    def _deliver(self) -> None:
        while (row := self._rows.get()) is not None:
            if not self._logging.out:
                self._log_row(row)
            self._rows.task_done()
        if self._skipped is not None:  # training ended before a probe that was announced as final
            self._log_row(replace(self._skipped, scalars={}, texts={}, final=True))

    def _log_row(self, row: _Bound) -> None:
        payload = {PREFIX + name: value for name, value in (row.scalars | row.texts).items()} | self._media(row)
        try:
            if payload:
                row.run.log({**payload, STEP_KEY: row.step})
        except Exception as error:
            self._logging.failed(error)

    def _media(self, row: _Bound) -> dict[str, Any]:
        """A row's figures as W&B media; empty where it has none, they are thinned out or drawing fails."""
        if row.figures is None or self._drawing.out:
            return {}
        self._skipped = None if row.final else row
        if not self._budget.due() and not row.final:
            return {}
        try:
            import plotly.graph_objects as go
            import wandb

            drawn = row.figures() if callable(row.figures) else row.figures
            figures = self._budget.pick(drawn, final=row.final)
            # plotly >= 6 writes numpy arrays as base64 ("bdata"), which the W&B page has shown as empty charts.
            media = {PREFIX + name: wandb.Plotly(go.Figure(plain(figure, 4))) for name, figure in figures.items()}
        except Exception as error:
            self._drawing.failed(error)
            return {}
        if len(figures) == len(drawn):
            self._skipped = None
        return media
