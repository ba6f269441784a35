"""The run folder: the append-only, crash-safe record of a run that every view reads. Knows no model and no torch.

    manifest.json                    what was run; rewritten whole, through a temporary name
    probes.safetensors               the probe set (written by ProbeSet.save)
    base_answers.safetensors         the base model's answers to it (written by BaseAnswers.save)
    scores/step-00000100.safetensors per-pair arrays of one probe, written to a temporary name, then renamed
    scalars.jsonl                    one line a probe
    training.jsonl                   one line a log of the trainer
    events.jsonl                     one line an event in the life of a head
    alerts.jsonl                     one line an alert of a probe

One process writes; any number may read while it does. Nothing is ever deleted: what a new or resumed run replaces is
moved to previous-<n>/ or resumed-<n>/.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save

from headwatch.errors import UserError
from headwatch.io.atomic import write_whole
from headwatch.io.jsonl import Row, latest_rows, merged_rows, read_lines
from headwatch.io.plain_json import is_number, plain, to_number
from headwatch.lives.events import WITHDRAWN, Event

FORMAT = 1
LOGS = ("scalars.jsonl", "training.jsonl", "events.jsonl", "alerts.jsonl")
RECORD = ("scores", *LOGS, "base_answers.safetensors", "probes.safetensors", "manifest.json")


@dataclass(frozen=True)
class ProbeScores:
    """The arrays of one probe, cast to the types below. N pairs, L layers, H heads, F families, S sources, R targets.

    head_scores: float32 [N, L, H], (metric if the head were corrupted) - (metric as it is).
    metric_clean, metric_corrupted: float32 [N]. correct: uint8 [N], 1 where the most likely token is the clean answer.
    kl_from_base: float32 [N], KL of the clean answers' distribution from the base model's, in nats.
    circuit_active (bool), circuit_stability, importance (float32): [F, L, H], the circuit rule, families in the
    manifest's order. importance_draws: float32 [F, B, L, H], the importance in B resamples of the pairs, the same ones
    at every probe. edges_mean_abs: float32 [F, S, R], mean |edge score|.
    """

    head_scores: NDArray[Any]
    metric_clean: NDArray[Any]
    metric_corrupted: NDArray[Any]
    correct: NDArray[Any] | None = None
    kl_from_base: NDArray[Any] | None = None
    circuit_active: NDArray[Any] | None = None
    circuit_stability: NDArray[Any] | None = None
    importance: NDArray[Any] | None = None
    importance_draws: NDArray[Any] | None = None
    edges_mean_abs: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        types = {"correct": np.uint8, "circuit_active": np.bool_}
        for name, value in self.arrays().items():
            # Frozen: the only way to store what was cast. Contiguous: what safetensors writes.
            object.__setattr__(self, name, np.ascontiguousarray(value, dtype=types.get(name, np.float32)))
        if self.head_scores.ndim != 3:
            raise UserError(f"head_scores has shape {self.head_scores.shape}: give [N, L, H]")
        n_pairs, *heads = self.head_scores.shape
        for name in ("metric_clean", "metric_corrupted", "correct", "kl_from_base"):
            array = getattr(self, name)
            if array is not None and array.shape != (n_pairs,):
                raise UserError(f"{name} has shape {array.shape}: give [{n_pairs}], one value a pair")
        for name in ("circuit_active", "circuit_stability", "importance"):
            array = getattr(self, name)
            if array is not None and (array.ndim != 3 or list(array.shape[1:]) != heads):
                raise UserError(f"{name} has shape {array.shape}: give [F, {heads[0]}, {heads[1]}]")
        draws = self.importance_draws
        if draws is not None and (draws.ndim != 4 or list(draws.shape[2:]) != heads):
            raise UserError(f"importance_draws has shape {draws.shape}: give [F, B, {heads[0]}, {heads[1]}]")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}


def describe_probes(probes: Any) -> dict[str, Any]:
    """The manifest's "probes" entry of a ProbeSet: fingerprint, families, and which family each pair belongs to."""
    names = list(dict.fromkeys(probes.families))
    return {
        "fingerprint": probes.fingerprint,
        "n_pairs": len(probes.families),
        "families": names,
        "pair_families": [names.index(family) for family in probes.families],
        "tokenizer": probes.tokenizer_name,
    }


class RunFolder:
    """One run on disk. Make it with `RunFolder.create` or `RunFolder.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun: set[str] = set()  # logs that this object has already appended to

    @classmethod
    def create(cls, path: str | os.PathLike[str], manifest: dict[str, Any]) -> "RunFolder":
        """Begin a record at `path`. An older record there is moved to previous-<n>/ inside it, never overwritten.

        manifest: what the run is; its "format" is set here. Save the probe set after this, not before.
        """
        run = cls(Path(path))
        run.path.mkdir(parents=True, exist_ok=True)
        record = [name for name in RECORD if (run.path / name).exists()]
        if record:
            aside = run._aside("previous")
            for name in record:  # the manifest goes last: until then the folder still opens as the old record
                os.replace(run.path / name, aside / name)
        (run.path / "scores").mkdir()
        run._write_manifest({"format": FORMAT, **manifest})
        return run

    def copy_to(self, path: str | os.PathLike[str]) -> "RunFolder":
        """A copy of this record at `path`, to go on with there; an older one at `path` is moved aside, as by create."""
        copy = RunFolder.create(path, self.manifest)
        for name in RECORD[:-1]:
            source = self.path / name
            for file in [source] if source.is_file() else sorted(source.glob("step-*.safetensors")):
                write_whole(copy.path / file.relative_to(self.path), file.read_bytes())
        return copy

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """The record at `path`, or at `path`/headwatch when given a trainer's output_dir."""
        given = Path(path)
        for folder in (given, given / "headwatch"):
            if (folder / "manifest.json").is_file():
                run = cls(folder)
                version = run.manifest.get("format")
                if version != FORMAT:
                    raise UserError(
                        f"{folder} has run-folder format {version!r}; this headwatch reads {FORMAT}: update it"
                    )
                return run
        if not given.exists():
            raise UserError(
                f"{given} does not exist: give a run folder, or the trainer's output_dir that contains headwatch/"
            )
        raise UserError(
            f"{given} is not a run folder: looked for manifest.json and headwatch/manifest.json in it; "
            "give the folder that HeadWatchCallback wrote, {output_dir}/headwatch"
        )

    # --- manifest ---------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now."""
        try:
            manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / 'manifest.json'} cannot be read: {error}") from error
        if not isinstance(manifest, dict):
            raise UserError(f"{self.path / 'manifest.json'} holds no JSON object, so it is not a run folder's manifest")
        return manifest

    def update_manifest(self, **values: Any) -> None:
        """Set keys of the manifest, for example status="finished"."""
        self._write_manifest({**self.manifest, **values})

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the probe families, in the order of the circuit arrays' first axis."""
        families = self.manifest.get("probes", {}).get("families", [])
        return tuple(dict.fromkeys(families))

    def pairs_of(self, family: str) -> NDArray[np.int64]:
        """Which pairs (indices into N) belong to a family."""
        probes, names = self.manifest.get("probes", {}), self.families
        if family not in names:
            raise UserError(f"family={family!r}: this run has {', '.join(names) or 'none'}")
        if "pair_families" in probes:
            return np.flatnonzero(np.asarray(probes["pair_families"]) == names.index(family))
        if len(names) == 1:
            return np.arange(int(probes["n_pairs"]))
        raise UserError(
            f"{self.path / 'manifest.json'} does not say which pair is of which family (probes.pair_families)"
        )

    # --- writing ----------------------------------------------------------------------------------------------------

    def append_scalars(self, step: int, values: dict[str, Any]) -> None:
        """One row of a probe. Numpy and torch scalars become numbers; what is not finite becomes null and stays."""
        self._append("scalars.jsonl", [{"step": int(step), **plain(values)}])

    def append_training(self, step: int, values: dict[str, Any]) -> None:
        """One log of the trainer; only its numbers are kept."""
        numbers = {key: to_number(value) for key, value in values.items() if is_number(value)}
        self._append("training.jsonl", [{**numbers, "step": int(step)}])

    def append_events(self, events: Iterable[Event]) -> None:
        """The events of a probe, one line each."""
        self._append("events.jsonl", [plain(event.to_json()) for event in events])

    def append_alerts(self, alerts: Iterable[Row]) -> None:
        """The alerts of a probe, one line each; each row has its "step"."""
        self._append("alerts.jsonl", [plain(alert) for alert in alerts])

    def write_scores(self, step: int, scores: ProbeScores) -> Path:
        """The arrays of one probe; a file of the same step is replaced."""
        path = self._scores_path(step)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, save(scores.arrays(), metadata={"step": str(int(step))}))
        return path

    def cut_after(self, step: int, last_probe: int | None = None) -> Path | None:
        """Take back everything later than `step`, for a run that resumes from a checkpoint of that step.

        last_probe: probes later than this one are taken back too; None is `step`.
        It is moved to resumed-<n>/, whose path is returned; None when there was nothing later.
        """
        last_probe = step if last_probe is None else last_probe
        late_scores = [s for s in self.steps if s > last_probe]
        kept: dict[str, list[str]] = {}
        late: dict[str, list[str]] = {}
        for name in LOGS:
            last = step if name == "training.jsonl" else last_probe
            for line, row in read_lines(self.path / name):
                # A line that cannot be read belongs to the crash, so it goes with what is taken back.
                side = kept if row is not None and row["step"] <= last else late
                side.setdefault(name, []).append(line)
        if not late_scores and not late:
            return None
        aside = self._aside("resumed")
        (aside / "scores").mkdir()
        for name, lines in late.items():
            write_whole(aside / name, "".join(f"{line}\n" for line in lines).encode())
        for name in late:
            write_whole(self.path / name, "".join(f"{line}\n" for line in kept.get(name, [])).encode())
        for late_step in late_scores:
            source = self._scores_path(late_step)
            os.replace(source, aside / "scores" / source.name)
        return aside

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[int]:
        """Steps whose scores are on disk, in order."""
        names = (path.name for path in (self.path / "scores").glob("step-*.safetensors"))
        digits = (name.removeprefix("step-").removesuffix(".safetensors") for name in names)
        return sorted(int(d) for d in digits if d.isdigit())

    def read_scores(self, step: int) -> ProbeScores:
        """The arrays of one probe."""
        path = self._scores_path(step)
        if not path.is_file():
            raise UserError(f"{self.path} has no scores of step {step}; it has {self.steps or 'none'}")
        try:
            arrays = load_file(path)
            known = {field.name for field in fields(ProbeScores)}
            return ProbeScores(**{name: array for name, array in arrays.items() if name in known})
        except UserError:
            raise
        except Exception as error:  # safetensors raises its own type, and a missing array is a TypeError
            raise UserError(f"{path} cannot be read ({error}): move it away to read the rest of the run") from error

    def probe_texts(self) -> list[tuple[str, tuple[str, str]]]:
        """(family, (clean, corrupted) text) of every pair of the probe set, read without torch; [] where there is none.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.path / "probes.safetensors"
        if not path.is_file():
            return []
        try:
            with safe_open(path, framework="numpy") as file:
                probes = json.loads(file.metadata()["headwatch_probes"])
            return [
                (str(family), (str(clean), str(corrupted)))
                for family, (clean, corrupted) in zip(probes["families"], probes["texts"], strict=True)
            ]
        except Exception as error:  # safetensors raises its own type
            raise UserError(f"{path} cannot be read ({error})") from error

    def scalars(self) -> list[Row]:
        """One row a probe, by step; a repeated step's later values win. A value that was not finite is None."""
        return merged_rows(latest_rows(self.path / "scalars.jsonl"))

    def training(self) -> list[Row]:
        """One row a step that the trainer logged; several logs of one step are merged, later values win."""
        return merged_rows(latest_rows(self.path / "training.jsonl"))

    def events(self) -> list[Event]:
        """All events, by step; of a step that was probed again or an event that was settled later, the last telling."""
        events = (Event.from_json(row) for row in latest_rows(self.path / "events.jsonl"))
        told = {(e.step, e.family, e.rule, e.layer, e.head): e for e in events}
        return [event for event in told.values() if event.status != WITHDRAWN]

    def alerts(self) -> list[Row]:
        """All alerts, by step."""
        return latest_rows(self.path / "alerts.jsonl")

    # --- files ------------------------------------------------------------------------------------------------------

    def _scores_path(self, step: int) -> Path:
        return self.path / "scores" / f"step-{int(step):08d}.safetensors"

    def _aside(self, kind: str) -> Path:
        """A new, empty folder kind-<n> inside the run folder."""
        number = 1
        while True:
            try:
                (self.path / f"{kind}-{number}").mkdir()
                return self.path / f"{kind}-{number}"
            except FileExistsError:
                number += 1

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_whole(
            self.path / "manifest.json", (json.dumps(plain(manifest), indent=1, allow_nan=False) + "\n").encode()
        )

    def _append(self, name: str, rows: Sequence[Row]) -> None:
        if not rows:
            return
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with open(self.path / name, "ab+") as file:
            if name not in self._begun:  # a line that an earlier process left torn must not swallow this one
                self._begun.add(name)
                if file.seek(0, os.SEEK_END) > 0:
                    file.seek(-1, os.SEEK_END)
                    text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode())  # one write in append mode: a reader sees whole lines or one torn last line
