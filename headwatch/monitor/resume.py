"""Going on after a checkpoint: the note that is left in it, the record it leads back to, and what is refused."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.probes import ProbeSet
from headwatch.record.recorded_settings import recorded_settings
from headwatch.record.run_folder import RunFolder
from headwatch.stats import EvidenceSettings

logger = logging.getLogger(__name__)

_ABSENT = object()
SIDECAR = "headwatch_state.json"

# Settings that decide what a score or an event is: a history cannot change them on its way.
FIXED = (
    *("scoring.metric", "scoring.steps", "scoring.alphas", "scoring.edges", "circuit.top_n", "circuit.tau"),
    *("openers", "evidence"),
)


def write_sidecar(checkpoint: Path, run: RunFolder, step: int, last_probe: int | None) -> None:
    """Leave a note in a checkpoint of which record belongs to it; nothing where the folder is not there."""
    if not checkpoint.is_dir():
        return
    manifest = run.manifest
    note = {
        "format": 1,
        "step": step,
        "last_probe": last_probe,
        "record": os.path.relpath(run.path, checkpoint),
        "created": manifest.get("created"),
        "fingerprint": manifest["probes"]["fingerprint"],
        "model": {key: manifest["model"][key] for key in ("n_layers", "n_heads")},
        "wandb": manifest.get("wandb"),
    }
    write_atomic(checkpoint / SIDECAR, (json.dumps(note, indent=1) + "\n").encode())


def read_sidecar(checkpoint: Path) -> dict[str, Any] | None:
    """The note of a checkpoint; None where there is none or it cannot be read."""
    try:
        note = json.loads((checkpoint / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def find_record(args: Any, step: int, path: Path) -> RunFolder | None:
    """The record that a run resumed at `step` goes on with, at `path`; None where there is none (a warning says so).

    A checkpoint of another output_dir leads to its own record, of which a copy is made at `path`.
    """
    checkpoints = [Path(args.output_dir) / f"checkpoint-{step}"]
    if isinstance(given := getattr(args, "resume_from_checkpoint", None), str):
        checkpoints.insert(0, Path(given))
    note, checkpoint = next(((n, c) for c in checkpoints if (n := read_sidecar(c)) is not None), (None, checkpoints[0]))
    here = RunFolder.open(path) if (path / "manifest.json").is_file() else None
    if here is not None and (note is None or note.get("created") == here.manifest.get("created")):
        return here
    if note is not None:
        named = checkpoint / str(note.get("record"))
        if (named / "manifest.json").is_file():
            there = RunFolder.open(named)
            if there.manifest.get("created") == note.get("created"):
                return there.copy_to(path)
    logger.warning(
        "headwatch: the run resumes at step %d, but %s holds no record of it: lives are told from here on", step, path
    )
    return None


def refuse_another_run(run: RunFolder, probes: ProbeSet, shape: tuple[int, int], settings: Mapping[str, Any]) -> None:
    """UserError, in one line, when the record at hand was made of other pairs, another model or by other rules."""
    manifest = run.manifest
    began = f"the record in {run.path} was begun"
    way_out = f"give the same again, or move {run.path} away to begin a new record"
    before, file = manifest["probes"], run.path / "probes.safetensors"
    if (on_disk := ProbeSet.load(file).fingerprint) != before["fingerprint"]:
        raise UserError(
            f"{file} has fingerprint {on_disk}, but the manifest says {before['fingerprint']}: lives can only be told "
            f"on the pairs they began with; restore the file or move {run.path} away"
        )
    if probes.fingerprint != before["fingerprint"]:
        raise UserError(
            f"probes={_pairs(len(probes), probes.family_names)} with fingerprint {probes.fingerprint}: {began} on "
            f"{_pairs(before['n_pairs'], before['families'])} with fingerprint {before['fingerprint']}, and lives can "
            f"only be told on the pairs they began with; {way_out} (probes={str(file)!r} are the old ones)"
        )
    had = (manifest["model"]["n_layers"], manifest["model"]["n_heads"])
    if shape != had:
        raise UserError(
            f"model with {shape[0]} layers x {shape[1]} heads: {began} with {had[0]} x {had[1]}; resume with the same "
            f"model, or move {run.path} away to begin a new record"
        )
    old = recorded_settings(manifest)
    old["evidence"] = vars(EvidenceSettings.from_dict(old.get("evidence") or {}))
    for name in FIXED:
        now, then = _value(settings, name), _value(old, name)
        if then is not _ABSENT and then != now:
            now, then = _where_they_differ(now, then)
            raise UserError(f"{name}={now!r}: {began} with {name}={then!r}; {way_out}")


def _value(settings: Mapping[str, Any], name: str) -> Any:
    """A setting by its dotted name; _ABSENT where the record has none."""
    found: Any = settings
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _ABSENT
        found = found[part]
    return found


def cut_to(run: RunFolder, step: int, every: int) -> int | None:
    """Take back what the record tells of after `step`; returns the step of its last probe then.

    A probe at `step` itself that is off the schedule was taken because training ended there. A training that goes on
    would not have taken it, so it is taken back too.
    """
    steps = [s for s in run.steps if s <= step]
    ended_there = bool(steps) and steps[-1] == step and step % every != 0
    last = (steps[-2] if len(steps) > 1 else None) if ended_there else (steps[-1] if steps else None)
    if last is None:
        ended_there, last = False, steps[-1] if steps else None
    run.cut_after(step, last_probe=last if ended_there else None)
    return last


def _pairs(n: int, families: Any) -> str:
    return f"{n} pairs ({', '.join(families)})"


def _where_they_differ(now: Any, then: Any) -> tuple[Any, Any]:
    """Both values; of two mappings only the keys whose values differ."""
    if not isinstance(now, Mapping) or not isinstance(then, Mapping):
        return now, then
    keys = [key for key in {**now, **then} if now.get(key) != then.get(key)]
    return {key: now.get(key) for key in keys}, {key: then.get(key) for key in keys}
