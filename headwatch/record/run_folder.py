"""RunFolder: write and read the record of one run. The files are described in headwatch/record/layout.py."""

import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.io.jsonl import Row, append_rows, latest_rows, merged_rows
from headwatch.io.plain_json import is_number, plain, to_number
from headwatch.lives.events import WITHDRAWN, Event
from headwatch.record.layout import FORMAT, MANIFEST, PROBES, READABLE, RECORD, SCORES, scored_steps, scores_path
from headwatch.record.owner import is_claimed
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.schema import manifest_problem, row_problem
from headwatch.record.score_file import read_scores, write_scores
from headwatch.record.set_aside import set_aside, set_aside_after


def describe_probes(probes: Any, tokenizer: Any = None) -> dict[str, Any]:
    """The manifest's "probes" entry of a ProbeSet: fingerprint, families, family index of each pair, first pairs."""
    names = list(dict.fromkeys(probes.families))
    return {
        "fingerprint": probes.fingerprint,
        "n_pairs": len(probes.families),
        "families": names,
        "pair_families": [names.index(family) for family in probes.families],
        "tokenizer": probes.tokenizer_name,
        "examples": {name: _example(probes, probes.families.index(name), tokenizer) for name in names},
    }


def _example(probes: Any, index: int, tokenizer: Any) -> dict[str, str] | None:
    """A pair as text, with the answers that the metric compares where a tokenizer can decode them; None without."""
    texts, answers = probes.texts[index], probes.answers[index].tolist()
    if not any(texts):
        return None
    example = dict(zip(("clean", "corrupted"), texts, strict=True))
    if tokenizer is not None and min(answers) >= 0:
        for side, answer in zip(("clean", "corrupted"), answers, strict=True):
            example[f"{side}_answer"] = tokenizer.decode([answer])
    return example


class RunFolder:
    """The record of one run on disk. Make it with `RunFolder.create` or `RunFolder.open`.

    Attributes:
        path: the folder that holds manifest.json.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}, {len(scored_steps(self.path))} probes)"

    @classmethod
    def create(cls, path: str | os.PathLike[str], manifest: dict[str, Any]) -> "RunFolder":
        """Start a record at `path`. An older record there is moved to previous-<n>/ inside it, never overwritten.

        Args:
            path: the folder; created if it does not exist.
            manifest: what is run; its "format" is set here. Save the probe set after this call, not before.
        """
        run = cls(Path(path))
        run.path.mkdir(parents=True, exist_ok=True)
        set_aside(run.path)
        (run.path / SCORES).mkdir()
        run._write_manifest({"format": FORMAT, **manifest})
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """The record at `path`, or at `path`/headwatch when given a trainer's output_dir.

        Raises:
            UserError: there is no record, or one of another format.
        """
        given = Path(path)
        for folder in (given, given / "headwatch"):
            if (folder / MANIFEST).is_file():
                run = cls(folder)
                version = run._read_manifest().get("format")
                if version not in READABLE:
                    known = " and ".join(map(str, READABLE))
                    raise UserError(
                        f"{folder} has run-folder format {str(version)[:40]}; this headwatch reads {known}: update it"
                    )
                run.manifest  # noqa: B018 (refused here if it is damaged)
                return run
        if not given.exists():
            raise UserError(
                f"{given} does not exist: give a run folder, or the trainer's output_dir that contains headwatch/"
            )
        raise UserError(
            f"{given} is not a run folder: looked for manifest.json and headwatch/manifest.json in it; "
            "give the folder that HeadWatchCallback wrote, {output_dir}/headwatch"
        )

    def copy_to(self, path: str | os.PathLike[str]) -> "RunFolder":
        """Copy this record to `path`, where an older record is moved aside as by `create`."""
        copy = RunFolder.create(path, self.manifest)
        for name in RECORD:
            if name == MANIFEST:
                continue
            source = self.path / name
            for file in [source] if source.is_file() else sorted(source.glob("step-*.safetensors")):
                write_atomic(copy.path / file.relative_to(self.path), file.read_bytes())
        return copy

    def cut_after(self, step: int, last_probe: int | None = None) -> Path | None:
        """Truncate the record to `step`, for a run that resumes there; see `set_aside.set_aside_after`."""
        return set_aside_after(self.path, step, last_probe)

    # --- manifest ---------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now.

        Raises:
            UserError: it cannot be read.
        """
        manifest = self._read_manifest()
        if (problem := manifest_problem(manifest)) is not None:
            raise UserError(f"{self.path / MANIFEST} is damaged: {problem}")
        return manifest

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = plain(json.loads((self.path / MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.path / MANIFEST} cannot be read: {error}") from error
        if not isinstance(manifest, dict):
            raise UserError(f"{self.path / MANIFEST} holds no JSON object, so it is not a run folder's manifest")
        return manifest

    @property
    def status(self) -> str:
        """How the run is or ended: running, finished, failed (probing was turned off) or interrupted.

        A run that no process writes any more, and that did not finish, was interrupted: by an exception in the
        training, a signal or a crash.
        """
        status = str(self.manifest.get("status") or "unknown")
        return "interrupted" if status == "running" and is_claimed(self.path) is False else status

    def update_manifest(self, **values: Any) -> None:
        """Set keys of the manifest, for example status="finished"."""
        self._write_manifest({**self._read_manifest(), **values})

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        text = json.dumps(plain(manifest), indent=1, allow_nan=False)
        write_atomic(self.path / MANIFEST, f"{text}\n".encode())

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the probe families, in the order of the circuit arrays' first axis."""
        families = self.manifest.get("probes", {}).get("families", [])
        return tuple(dict.fromkeys(families))

    def pairs_of(self, family: str) -> NDArray[np.int64]:
        """Indices (into N) of the pairs of a family.

        Raises:
            UserError: the run has no such family, or the manifest does not assign pairs to families.
        """
        probes, names = self.manifest.get("probes", {}), self.families
        if family not in names:
            raise UserError(f"family={family!r}: this run has {', '.join(names) or 'none'}")
        if "pair_families" in probes:
            return np.flatnonzero(np.asarray(probes["pair_families"]) == names.index(family))
        if len(names) == 1:
            return np.arange(int(probes["n_pairs"]))
        raise UserError(f"{self.path / MANIFEST} does not state the family of each pair (probes.pair_families)")

    # --- writing ----------------------------------------------------------------------------------------------------

    def append_scalars(self, step: int, values: dict[str, Any]) -> None:
        """Append one row of a probe. Numpy and torch scalars become numbers, and null where they are not finite."""
        row = {str(key): to_number(value) if is_number(value) else plain(value) for key, value in values.items()}
        append_rows(self.path / "scalars.jsonl", [{"step": int(step), **row}])

    def append_training(self, step: int, values: dict[str, Any]) -> None:
        """Append one log of the trainer; only its numbers are kept."""
        numbers = {key: to_number(value) for key, value in values.items() if is_number(value)}
        append_rows(self.path / "training.jsonl", [{**numbers, "step": int(step)}])

    def append_events(self, events: Iterable[Event]) -> None:
        """Append the events of a probe, one line each."""
        append_rows(self.path / "events.jsonl", [event.to_json() for event in events])

    def append_alerts(self, alerts: Iterable[Row]) -> None:
        """Append the alerts of a probe, one line each; each row has its "step"."""
        append_rows(self.path / "alerts.jsonl", [plain(alert) for alert in alerts])

    def write_scores(self, step: int, scores: ProbeScores) -> Path:
        """Write the arrays of one probe; a file of the same step is replaced."""
        path = scores_path(self.path, step)
        path.parent.mkdir(exist_ok=True)
        write_scores(path, step, scores)
        return path

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[int]:
        """Steps whose scores are on disk, sorted."""
        return scored_steps(self.path)

    def read_scores(self, step: int) -> ProbeScores:
        """The arrays of one probe.

        Raises:
            UserError: they are not on disk, or cannot be read.
        """
        path = scores_path(self.path, step)
        if not path.is_file():
            raise UserError(f"{self.path} has no scores of step {step}; it has {self.steps or 'none'}")
        scores = read_scores(path)
        self._check_shape(path, scores)
        return scores

    def probes(self) -> Iterator[tuple[int, ProbeScores | str]]:
        """The arrays of every probe, by step; for a probe that is lost, what is wrong with it.

        A probe is lost where its arrays are damaged, or missing while scalars.jsonl has its row: the rest of the record
        can be read without it.
        """
        on_disk = set(self.steps)
        for step in sorted(on_disk | {row["step"] for row in self.scalars()}):
            if step not in on_disk:
                yield step, f"{scores_path(self.path, step)} is missing"
                continue
            try:
                scores: ProbeScores | str = self.read_scores(step)
            except UserError as error:
                scores = str(error)
            yield step, scores

    def _check_shape(self, path: Path, scores: ProbeScores) -> None:
        """Refuse arrays of other pairs, families or another model than the manifest's."""
        manifest = self.manifest
        model, n_pairs = manifest["model"], manifest["probes"].get("n_pairs")
        shape = (n_pairs, model["n_layers"], model["n_heads"])
        if n_pairs and scores.head_scores.shape != shape:
            raise UserError(
                f"{path} holds scores of shape {scores.head_scores.shape}, and the manifest describes {shape}: move it "
                "away to read the rest of the run"
            )
        for name in ("circuit_active", "circuit_stability", "importance", "importance_draws", "edges_mean_abs"):
            array = getattr(scores, name)
            if array is not None and len(array) != len(self.families):
                raise UserError(
                    f"{path} holds {name} of {len(array)} families, and the manifest names {len(self.families)}: move "
                    "it away to read the rest of the run"
                )

    def probe_texts(self) -> list[tuple[str, tuple[str, str]]]:
        """(family, (clean, corrupted) text) of every pair, read without torch; [] where no probe set is on disk.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.path / PROBES
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
        """One row per probe, by step; a later row of the same step wins. A value that was not finite is None."""
        return merged_rows(self._rows("scalars.jsonl"))

    def training(self) -> list[Row]:
        """One row per step that the trainer logged; several logs of one step are merged, later values win."""
        return merged_rows(self._rows("training.jsonl"))

    def events(self) -> list[Event]:
        """All events by step, in their latest version: without what was withdrawn, or replaced by a later resume."""
        shape = self.manifest["model"]
        events = (Event.from_json(row) for row in self._rows("events.jsonl"))
        events = (e for e in events if e.layer < shape["n_layers"] and e.head < shape["n_heads"])
        latest = {(e.step, e.family, e.rule, e.layer, e.head): e for e in events}
        return [event for event in latest.values() if event.status != WITHDRAWN]

    def alerts(self) -> list[Row]:
        """All alerts, by step."""
        return self._rows("alerts.jsonl")

    def _rows(self, name: str) -> list[Row]:
        """The valid rows of a log, by step."""
        return latest_rows(self.path / name, partial(row_problem, name))
