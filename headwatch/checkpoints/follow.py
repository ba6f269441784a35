"""Score the checkpoints of a folder as they appear, into the record that the callback would write."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwatch.checkpoints.layouts import Checkpoint, Layout, find_checkpoints, require_checkpoints
from headwatch.checkpoints.saved_models import SavedModels, last_complete_step
from headwatch.checkpoints.wholeness import SETTLED_SECONDS, STALE_SECONDS, missing, seconds_unchanged
from headwatch.errors import UserError
from headwatch.io.plain_json import is_number, to_number
from headwatch.model.loading import Loader, adapter_base, load_tokenizer, release_memory
from headwatch.monitor.settings import WatchSettings
from headwatch.record.layout import MANIFEST
from headwatch.record.run_folder import RunFolder

SOURCE = "headwatch follow"


@dataclass(frozen=True)
class FollowOptions:
    """What is followed, and until when.

    Attributes:
        folder: the trainer's output folder.
        base: the model before training; None: the adapter's base, or the checkpoint of step 0.
        layout: None finds it out.
        tokenizer: name of the tokenizer; None is the base model's, or the checkpoint's.
        log: a .jsonl file of the trainer's log, a "step" per row; None: the Trainer's state in the checkpoint.
        until_done: wait for further checkpoints until training is done.
        last_step: training is done with the checkpoint of this step; None: the Trainer's state decides.
        patience: seconds without a new checkpoint after which training counts as done.
        poll: seconds between two readings of the folder.
        settled: see `wholeness.missing`.
    """

    folder: Path
    base: str | None = None
    layout: Layout | None = None
    tokenizer: str | None = None
    log: Path | None = None
    until_done: bool = False
    last_step: int | None = None
    patience: float = 3600.0
    poll: float = 10.0
    settled: float = SETTLED_SECONDS


@dataclass
class Followed:
    """What came of it.

    Attributes:
        run: the run folder.
        steps: steps in the record.
        scored: steps that were scored now.
        skipped: checkpoint -> why it was left out.
        waiting: checkpoint -> what it lacks.
        done: whether training is done.
    """

    run: Path
    steps: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    done: bool = False


class Follower:
    """Follows one folder.

    Args:
        options: what is followed.
        settings: the callback's. `every` chooses the checkpoints: those whose step is a multiple of it, and the last.
        out: the run folder.
        loader: how models are loaded.
        say: receives a line for everything that happens.
        on_probe: called after each probe, with the run folder.
    """

    def __init__(
        self,
        options: FollowOptions,
        settings: WatchSettings,
        out: Path,
        loader: Loader,
        say: Callable[[str], None] = print,
        on_probe: Callable[[RunFolder], None] | None = None,
    ) -> None:
        self.options, self.settings, self.loader, self.say, self.on_probe = options, settings, loader, say, on_probe
        _refuse_other_record(out)
        self.result = Followed(out)
        self._models: SavedModels | None = None
        self._logged: dict[int, dict[str, Any]] = {}  # rows of the log that an earlier process recorded
        self._position = 0  # rows of the log read so far
        self._said: set[str] = set()

    def run(self) -> Followed:
        """Score what is there and, with `until_done`, what appears until training is done."""
        self._complete_log()
        idle_since = time.monotonic()
        while True:
            scored = self._score_all()
            if scored:
                idle_since = time.monotonic()
            if self.result.done or not self.options.until_done:
                break
            if time.monotonic() - idle_since > self.options.patience:
                self.say(f"no new checkpoint for {self.options.patience / 60:.0f} minutes: training counts as done")
                self._score_last()
                self.result.done = True
                break
            time.sleep(self.options.poll)
        if self._models is not None:
            self._models.end(self.result.done)
        elif self.result.done:
            RunFolder.open(self.result.run).update_manifest(status="finished")
        return self.result

    def plan(self) -> dict[str, Any]:
        """What `run` would do now: the base, the layout, and for each checkpoint what becomes of it."""
        found, recorded = self._find(), self._recorded()
        rows = []
        for checkpoint in found:
            if checkpoint.step <= (-1 if recorded is None else recorded):
                state = "in the record"
            elif checkpoint.step == 0 or not self._is_due(checkpoint):
                state = "the base" if checkpoint.step == 0 else "off the schedule"
            else:
                lacks = missing(checkpoint, self.options.settled)
                state = f"not complete yet ({lacks})" if lacks else "to score"
            path = str(checkpoint.root.relative_to(self.options.folder))
            rows.append({"step": checkpoint.step, "checkpoint": path, "state": state})
        return {
            "run": str(self.result.run),
            "base": self._base(found),
            "layout": found[0].layout.name if found else None,
            "checkpoints": rows,
        }

    # --- which checkpoints ------------------------------------------------------------------------------------------

    def _find(self) -> list[Checkpoint]:
        find = find_checkpoints if self.options.until_done else require_checkpoints
        return find(self.options.folder, self.options.layout)

    def _is_last(self, checkpoint: Checkpoint) -> bool:
        if self.options.last_step is not None:
            return checkpoint.step >= self.options.last_step
        return checkpoint.is_final

    def _due(self, found: list[Checkpoint]) -> Iterator[Checkpoint]:
        """Whole checkpoints after the last recorded one, in order; ends at one that has to be waited for."""
        self.result.waiting = {}
        last = -1 if (recorded := self._recorded()) is None else recorded
        later = [c for c in found if c.step > max(last, 0) and self._is_due(c)]
        for index, checkpoint in enumerate(later):
            lacks = missing(checkpoint, self.options.settled)
            if not lacks:
                yield checkpoint
                continue
            stale = seconds_unchanged(checkpoint.root) > STALE_SECONDS
            if stale and any(not missing(other, self.options.settled) for other in later[index + 1 :]):
                self._skip(checkpoint, lacks)
                continue
            self.result.waiting[checkpoint.name] = lacks
            self._say_once(f"{checkpoint.name}: not complete yet ({lacks})")
            return

    def _is_due(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.step % self.settings.every == 0 or self._is_last(checkpoint)

    def _skip(self, checkpoint: Checkpoint, why: str) -> None:
        if checkpoint.name not in self.result.skipped:
            self.result.skipped[checkpoint.name] = why
            self.say(f"{checkpoint.name}: left out ({why})")

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def _recorded(self) -> int | None:
        return last_complete_step(self.result.run)

    # --- scoring ----------------------------------------------------------------------------------------------------

    def _score_all(self) -> int:
        found = self._find()
        if not found:
            self._say_once(f"{self.options.folder}: no checkpoint yet")
            return 0
        scored = 0
        if self._recorded() is None:
            self._begin_with_base(found)
            scored += 1
        for checkpoint in self._due(found):
            scored += self._score(checkpoint, self._is_last(checkpoint))
        self.result.steps = self._steps()
        self.result.done = self.result.done or self._is_done(found)
        return scored

    def _is_done(self, found: list[Checkpoint]) -> bool:
        recorded = self._recorded()
        return any(self._is_last(checkpoint) and checkpoint.step == recorded for checkpoint in found)

    def _score_last(self) -> None:
        """At the end, the last whole checkpoint is scored even if it is off the schedule."""
        whole = [c for c in self._find() if not missing(c, self.options.settled)]
        if whole and whole[-1].step > (self._recorded() or 0):
            self._score(whole[-1], final=True)
            self.result.steps = self._steps()

    def _begin_with_base(self, found: list[Checkpoint]) -> None:
        """Begin the record: step 0 is the model before training."""
        base = self._base(found)
        if base is None:
            raise UserError(
                f"--base is missing: give the model that the training in {self.options.folder} began with; its scores "
                "are step 0"
            )
        self.say(f"step 0: the base model, {base}")
        model = self.loader.model(base)
        self._open(base, found).begin(model)
        del model
        release_memory()
        self._after_probe(0, None)

    def _base(self, found: list[Checkpoint]) -> str | None:
        """The model before training: as named, else the checkpoint of step 0, else the adapters' own base."""
        zero = next((str(c.path) for c in found if c.step == 0 and not missing(c, self.options.settled)), None)
        return self.options.base or zero or next(filter(None, (adapter_base(c.path) for c in found)), None)

    def _open(self, base: str | None, found: list[Checkpoint]) -> SavedModels:
        if self._models is None:
            names = [name for name in (self.options.tokenizer, base, *(str(c.path) for c in found[:1])) if name]
            tokenizer = load_tokenizer(*names[:1]) if self.options.tokenizer else load_tokenizer(*names)
            name = self.options.folder.resolve().name
            self._models = SavedModels(self.result.run, self.settings, tokenizer, name, SOURCE)
        return self._models

    def _score(self, checkpoint: Checkpoint, final: bool) -> bool:
        """Score one checkpoint; False if it was deleted meanwhile."""
        try:
            model = self.loader.model(checkpoint.path, self.options.base)
        except UserError:
            if missing(checkpoint, 0.0):  # trainers delete old checkpoints
                self._skip(checkpoint, "it was deleted or replaced while it was loaded")
                return False
            raise
        if self._models is None:
            models = self._open(self.options.base or adapter_base(checkpoint.path), [checkpoint])
            models.begin(model)
            self._logged = {row["step"]: row for row in models.run.training()}
        assert self._models is not None
        rows = self._log_rows(checkpoint)
        self._log(rows, checkpoint.step - 1)  # the Trainer logs a step after the callback's probe of that step
        seconds = self._models.probe(checkpoint.step, model, final)
        self._log(rows, checkpoint.step)
        del model
        release_memory()
        self._after_probe(checkpoint.step, seconds)
        return True

    def _after_probe(self, step: int, seconds: float | None) -> None:
        assert self._models is not None
        self.result.scored.append(step)
        run = self._models.run
        if step:
            row = run.scalars()[-1]
            counts = (
                f"{family}: "
                + ", ".join(f"{row.get(f'{family}/{name}', 0):.0f} {name}" for name in ("active", "emerged", "dropped"))
                for family in run.families
            )
            self.say(f"step {step}: {'; '.join(counts)} ({seconds:.1f} s)")
        if self.on_probe is not None:
            self.on_probe(run)

    def _steps(self) -> list[int]:
        return RunFolder.open(self.result.run).steps if (self.result.run / MANIFEST).is_file() else []

    # --- the trainer's log ------------------------------------------------------------------------------------------

    def _log_rows(self, checkpoint: Checkpoint) -> list[dict[str, Any]]:
        if self.options.log is not None:
            return read_log(self.options.log)
        rows = (checkpoint.trainer_state() or {}).get("log_history") or []
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]

    def _complete_log(self) -> None:
        """Record what the Trainer logged at the last recorded step, if this process was killed before it could."""
        recorded = self._recorded()
        found = find_checkpoints(self.options.folder, self.options.layout)
        checkpoint = next((c for c in found if c.step == recorded), None)
        if checkpoint is None:
            return
        run = RunFolder.open(self.result.run)
        known = {row["step"]: row for row in run.training()}
        for row in self._log_rows(checkpoint):
            if row["step"] <= checkpoint.step and not _is_recorded(row, known):
                run.append_training(row["step"], {key: value for key, value in row.items() if key != "step"})

    def _log(self, rows: list[dict[str, Any]], last: int) -> None:
        """Record the rows up to step `last` that are not in the record."""
        assert self._models is not None
        while self._position < len(rows) and rows[self._position]["step"] <= last:
            row = rows[self._position]
            self._position += 1
            if not _is_recorded(row, self._logged):
                self._models.log(row["step"], {key: value for key, value in row.items() if key != "step"})


def _is_recorded(row: dict[str, Any], known: Mapping[int, dict[str, Any]]) -> bool:
    """Whether the numbers of a row are in the record; known: its rows by step."""
    there = known.get(row["step"], {})
    numbers = {key: to_number(value) for key, value in row.items() if is_number(value)}
    return all(key in there and there[key] == value for key, value in numbers.items())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl log, sorted by step; an incomplete last line is left for later.

    Raises:
        UserError: the file cannot be read, or a row has no step.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"--log {path} cannot be read ({error.strerror}): give a .jsonl file") from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise UserError(f"--log {path}, line {number}: not JSON ({error})") from error
        if row is None:
            continue
        if not isinstance(row, Mapping) or not isinstance(row.get("step"), int):
            raise UserError(f'--log {path}, line {number}: no whole number "step" in it')
        rows.append(dict(row))
    return sorted(rows, key=lambda row: row["step"])


def _refuse_other_record(out: Path) -> None:
    """A record that the callback wrote during training is not continued here."""
    if (out / MANIFEST).is_file() and RunFolder.open(out).manifest.get("trainer") not in (SOURCE,):
        raise UserError(f"{out} holds a record that was made during training: give another folder with --out")
