"""The callback without a trainer: its events are called with models that were saved."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from headwatch.callback import HeadWatchCallback
from headwatch.monitor.settings import WatchSettings
from headwatch.probes import ProbeSet
from headwatch.record.layout import MANIFEST
from headwatch.record.run_folder import RunFolder

UNKNOWN = 2**62  # the last step of a training that may go on


@dataclass
class _Arguments:
    """What the callback reads of a trainer's arguments. output_dir is the run folder, which holds no checkpoint."""

    output_dir: str
    run_name: str
    recorded_by: str
    report_to: tuple[str, ...] = ()
    resume_from_checkpoint: None = None


@dataclass(eq=False)
class _State:
    """What the callback reads of a trainer's state; one object per training, as there."""

    global_step: int = 0
    max_steps: int = UNKNOWN
    is_world_process_zero: bool = True


class SavedModels:
    """Record of models that are scored one after another, made by HeadWatchCallback itself.

    So the record is the callback's: same pairs, scores, events, alerts, files and rows of the sinks.

    Args:
        folder: the run folder; an earlier record in it is continued after its last complete probe.
        settings: the callback's; a failure raises, whatever `strict` is.
        tokenizer: of the probe pairs.
        name: of the run.
        source: what makes the record, for the manifest's "trainer".
    """

    def __init__(self, folder: Path, settings: WatchSettings, tokenizer: Any, name: str, source: str) -> None:
        self.folder = folder
        self._callback = HeadWatchCallback.from_settings(replace(settings, folder=folder, strict=True), tokenizer)
        self._arguments = _Arguments(str(folder), name, source)
        self._state = _State()
        self._began = False

    @property
    def last_step(self) -> int | None:
        """Step of the last complete probe on disk; None if there is none."""
        return last_complete_step(self.folder)

    @property
    def run(self) -> RunFolder:
        """The record."""
        return RunFolder.open(self.folder)

    def begin(self, model: Any) -> None:
        """Begin the record with the base model, or continue it with any model of its shape."""
        last = self.last_step
        # At step 0 the callback would begin a new record; no trainer has step 0 when it resumes.
        step = 0 if last is None else max(last, 1)
        self._callback.on_train_begin(self._arguments, self._at(step), SimpleNamespace(), model=model)
        self._began = True

    def set_probes(self, probes: ProbeSet) -> None:
        """Score other pairs from now on, as many, each the counterpart of the same pair before."""
        self._callback.probes = probes

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record a row of the trainer's log."""
        self._callback.on_log(self._arguments, self._at(step), SimpleNamespace(), logs=dict(values))

    def probe(self, step: int, model: Any, final: bool = False) -> float:
        """Score a model as the callback does at the end of a step; returns the seconds.

        Args:
            step: its training step: a multiple of `every`, unless `final`.
            model: the model.
            final: whether it is the last one.
        """
        began = time.perf_counter()
        state = self._at(step, max_steps=step if final else UNKNOWN)
        self._callback.on_step_end(self._arguments, state, SimpleNamespace(), model=model)
        return time.perf_counter() - began

    def end(self, finished: bool) -> None:
        """Close the sinks; the record's status is "finished", or "running" if more is to come."""
        if not self._began:
            return
        last = self.last_step or 0
        self._callback._probed = last
        self._callback.on_train_end(self._arguments, self._at(last), SimpleNamespace())
        if not finished:
            self.run.update_manifest(status="running")

    def _at(self, step: int, max_steps: int = UNKNOWN) -> _State:
        self._state.global_step, self._state.max_steps = step, max_steps
        return self._state


def last_complete_step(folder: Path) -> int | None:
    """Step of the last probe of a record whose files are all written; None if there is none."""
    if not (folder / MANIFEST).is_file():
        return None
    run = RunFolder.open(folder)
    scored = set(run.steps)  # the row of scalars is written last
    return max((row["step"] for row in run.scalars() if row["step"] in scored), default=None)
