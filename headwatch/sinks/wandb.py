"""Weights & Biases: one row per probe, in the run of the training or in a run of our own.

Design (measured with wandb 0.31):
- `step=` is never passed: W&B drops a row whose step is below its own counter, and TRL's profiling rows advance that
  counter. The x axis is the `train/global_step` of each row, set by one `define_metric`.
- Every name is defined before it is first logged: a few headlines get panels, all others are hidden
  (`sinks/headlines.py`). A glob would do, but transformers defines "*" as well, and explicit names win over both.
- No wandb.Table and no wandb.plot.*: each is a blocking call to the server. Scalars and Plotly figures are not.
- A row's scalars and figures must reach `run.log` together, and drawing must not block the training: one daemon thread
  draws and logs whole rows, in order.
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
from headwatch.sinks.base import PREFIX, STEP_KEY, FailureBreaker, Row, Sink
from headwatch.sinks.figure_budget import FigureBudget
from headwatch.sinks.headlines import is_headline
from headwatch.sinks.wandb_run import existing_run, finish_run, run_info, start_run

logger = logging.getLogger(__name__)

MAX_QUEUED = 32  # rows (probes); a full queue means that W&B does not respond


@dataclass
class _QueuedRow(Row):
    """A row and its run, because a hyper-parameter search may start another run before the row is logged."""

    run: Any = None


class WandbSink(Sink):
    """Show probes in Weights & Biases. The training never waits for a server.

    Args:
        mode: "auto" uses the existing run and starts none; probes before there is a run are kept until there is one.
            "start" starts a run if there is none, offline if no server answers.
        project, name: of the run that "start" starts; an existing run keeps its own.
        config: settings of the monitor, added to the run's config under "headwatch".
        run_id, entity: the run that "start" continues when training resumes from a checkpoint.
        media_limit: maximum number of figures in the whole run; W&B limits a run to 1,000 files.
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
        self._config = {"headwatch": plain(config)} if config else {}
        self._start_options = (project, name, self._config, run_id, entity)
        self._defined: set[str] = set()
        self._run: Any = None
        self._own_run: Any = None
        self._pending: deque[Row] = deque(maxlen=MAX_QUEUED)
        self._queue: queue.Queue[_QueuedRow | None] = queue.Queue(maxsize=MAX_QUEUED)
        self._thread: threading.Thread | None = None
        self._finished = False
        self._budget = FigureBudget(media_limit)
        self._skipped: _QueuedRow | None = None  # the latest probe, if some of its figures were not logged
        self._logging = FailureBreaker("logging to W&B")
        self._drawing = FailureBreaker("drawing figures for W&B")

    def show(self, row: Row) -> None:
        """Queue one probe as one row. A text is a plain string, not a table."""
        if self._finished or self._logging.is_open:
            return
        self._pending.append(row)
        self._enqueue_pending()

    def run_info(self) -> dict[str, str | None] | None:
        """Id, project, entity and url of the run (the last two None offline); None without a run."""
        run = self._current_run()
        return None if run is None or getattr(run, "disabled", False) else run_info(run)

    def finish(self, timeout: float = 30.0) -> None:
        """Deliver pending rows, then finish the run if this sink started it; each within `timeout` seconds."""
        if self._finished:
            return
        self._enqueue_pending()
        self._finished = True
        if self._pending:
            logger.info("headwatch: no W&B run was found for the probes; they are in the run folder.")
        if self._thread is not None:
            try:
                self._queue.put(None, timeout=timeout)
                self._thread.join(timeout)
            except queue.Full:
                pass
            if self._thread.is_alive():
                logger.warning(
                    "headwatch: W&B took more than %g s; %d rows were dropped.", timeout, self._queue.qsize()
                )
        if self._own_run is not None:
            finish_run(self._own_run, timeout)

    # --- in the caller's thread

    def _enqueue_pending(self) -> None:
        """Queue the pending rows once a run exists."""
        if not self._pending or (run := self._current_run()) is None:
            return
        if getattr(run, "disabled", False):
            self._pending.clear()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._log_queued, name="headwatch-wandb", daemon=True)
            self._thread.start()
        while self._pending:
            row = _QueuedRow(**vars(self._pending.popleft()), run=run)
            try:
                self._queue.put_nowait(row)
            except queue.Full:
                self._logging.record(f"{MAX_QUEUED} rows are pending; the row of step {row.step} was dropped")

    def _current_run(self) -> Any:
        """The run to log to; None if there is none. The config entry is written once per run."""
        run = existing_run()
        if run is None and self._may_start:
            run = self._own_run = start_run(*self._start_options)
            self._may_start = False
        if run is not None and run is not self._run:
            self._run, self._defined = run, set()
            try:
                run.define_metric(PREFIX + "*", step_metric=STEP_KEY, hidden=True)
                if self._config:
                    run.config.update(self._config, allow_val_change=True)
            except Exception as error:
                self._logging.record(error)
        return self._run

    # --- in the sink's thread

    def _log_queued(self) -> None:
        while (row := self._queue.get()) is not None:
            if not self._logging.is_open:
                self._log_row(row)
            self._queue.task_done()
        if self._skipped is not None:  # training ended without a probe marked as final
            self._log_row(replace(self._skipped, scalars={}, texts={}, notices=(), final=True))

    def _log_row(self, row: _QueuedRow) -> None:
        payload = {PREFIX + name: value for name, value in (row.scalars | row.texts).items()} | self._media(row)
        try:
            if payload:
                self._define(row.run, payload)
                row.run.log({**payload, STEP_KEY: row.step})
            if summary := row.summary() if callable(row.summary) else row.summary:
                row.run.summary.update({PREFIX + name: text for name, text in summary.items()})
            for notice in row.notices:
                level = "WARN" if notice.is_warning else "INFO"
                row.run.alert(title=notice.title, text=notice.text, level=level, wait_duration=0)
        except Exception as error:
            self._logging.record(error)

    def _define(self, run: Any, payload: Mapping[str, Any]) -> None:
        """Define the names that are new in this run."""
        for key in payload:
            if key not in self._defined:
                self._defined.add(key)
                run.define_metric(key, step_metric=STEP_KEY, hidden=not is_headline(key.removeprefix(PREFIX)))

    def _media(self, row: _QueuedRow) -> dict[str, Any]:
        """The figures of a row as W&B media; empty if it has none, if they are skipped or if drawing fails."""
        if row.figures is None or self._drawing.is_open:
            return {}
        self._skipped = None if row.final else row
        if not self._budget.due() and not row.final:
            return {}
        try:
            import plotly.graph_objects as go
            import wandb

            drawn = row.figures() if callable(row.figures) else row.figures
            figures = self._budget.select(drawn, final=row.final)
            # plotly >= 6 writes numpy arrays as base64 ("bdata"), which the W&B page has shown as empty charts.
            media = {PREFIX + name: wandb.Plotly(go.Figure(plain(figure, 4))) for name, figure in figures.items()}
        except Exception as error:
            self._drawing.record(error)
            return {}
        if len(figures) == len(drawn):
            self._skipped = None
        return media
