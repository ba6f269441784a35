"""Resuming from a checkpoint: its sidecar file, the record that belongs to it, and the checks before continuing."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.io.schema import problem
from headwatch.probes import ProbeSet
from headwatch.record.recorded_settings import recorded_settings
from headwatch.record.run_folder import RunFolder
from headwatch.stats import EvidenceSettings

logger = logging.getLogger(__name__)

_ABSENT = object()
SIDECAR = "headwatch_state.json"

# Settings that define a score or an event: they must stay the same within a history.
FIXED = (
    *("scoring.metric", "scoring.steps", "scoring.alphas", "scoring.edges", "circuit.top_n", "circuit.tau"),
    *("openers", "evidence"),
)


class _Note(BaseModel):
    """What a sidecar must hold to be followed."""

    model_config = ConfigDict(extra="allow", strict=True)
    record: str = Field(max_length=4096)
    created: str | None
    wandb: dict[str, Any] | None = None


_NOTE: TypeAdapter[Any] = TypeAdapter(_Note)


def write_sidecar(checkpoint: Path, run: RunFolder, step: int, last_probe: int | None) -> None:
    """Write the sidecar that names the record of a checkpoint; do nothing if the checkpoint folder is missing."""
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
    """The sidecar of a checkpoint; None if it is missing or unreadable."""
    try:
        note: dict[str, Any] = json.loads((checkpoint / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return note if problem(_NOTE, note) is None else None


def find_record(args: Any, step: int, path: Path) -> RunFolder | None:
    """The record at `path` that a run resumed at `step` continues; None, with a warning, if there is none.

    The record of a checkpoint in another output_dir is copied to `path`.
    """
    checkpoints = [Path(args.output_dir) / f"checkpoint-{step}"]
    if isinstance(given := getattr(args, "resume_from_checkpoint", None), str):
        checkpoints.insert(0, Path(given))
    note, checkpoint = next(((n, c) for c in checkpoints if (n := read_sidecar(c)) is not None), (None, checkpoints[0]))
    here = RunFolder.open(path) if (path / "manifest.json").is_file() else None
    if here is not None and (note is None or note.get("created") == here.manifest.get("created")):
        return here
    if note is not None:
        named = checkpoint / note["record"]
        if _is_record(named):
            there = RunFolder.open(named)
            if there.manifest.get("created") == note.get("created"):
                return there.copy_to(path)
    logger.warning(
        "headwatch: the run resumes at step %d, but %s holds no record of it: events are recorded from here on",
        step,
        path,
    )
    return None


def _is_record(path: Path) -> bool:
    try:
        return (path / "manifest.json").is_file()
    except OSError:  # a name that the file system does not take
        return False


def check_same_run(run: RunFolder, probes: ProbeSet, shape: tuple[int, int], settings: Mapping[str, Any]) -> None:
    """Check that a record was made with the same pairs, model and rules.

    Raises:
        UserError: it was not; the message names what differs.
    """
    manifest = run.manifest
    began = f"the record in {run.path} was begun"
    remedy = f"give the same again, or move {run.path} away to begin a new record"
    _check_pairs(run, probes, manifest["probes"], began, remedy)
    recorded = (manifest["model"]["n_layers"], manifest["model"]["n_heads"])
    if shape != recorded:
        raise UserError(
            f"model with {shape[0]} layers x {shape[1]} heads: {began} with {recorded[0]} x {recorded[1]}; resume with "
            f"the same model, or move {run.path} away to begin a new record"
        )
    _check_settings(settings, manifest, began, remedy)


def _check_pairs(run: RunFolder, probes: ProbeSet, recorded: Mapping[str, Any], began: str, remedy: str) -> None:
    file = run.path / "probes.safetensors"
    if (on_disk := ProbeSet.load(file).fingerprint) != recorded["fingerprint"]:
        raise UserError(
            f"{file} has fingerprint {on_disk}, but the manifest has {recorded['fingerprint']}: a history needs "
            f"the pairs that it began with; restore the file or move {run.path} away"
        )
    if probes.fingerprint != recorded["fingerprint"]:
        raise UserError(
            f"probes={_pairs(len(probes), probes.family_names)} with fingerprint {probes.fingerprint}: {began} on "
            f"{_pairs(recorded['n_pairs'], recorded['families'])} with fingerprint {recorded['fingerprint']}, and a "
            f"history needs the pairs that it began with; {remedy} (the old ones: probes={str(file)!r})"
        )


def _check_settings(settings: Mapping[str, Any], manifest: dict[str, Any], began: str, remedy: str) -> None:
    recorded = recorded_settings(manifest)
    recorded["evidence"] = vars(EvidenceSettings.from_dict(recorded.get("evidence") or {}))
    for name in FIXED:
        now, then = _value(settings, name), _value(recorded, name)
        if then is not _ABSENT and then != now:
            now, then = _where_they_differ(now, then)
            raise UserError(f"{name}={now!r}: {began} with {name}={then!r}; {remedy}")


def _value(settings: Mapping[str, Any], name: str) -> Any:
    """A setting by its dotted name; _ABSENT if the record has none."""
    found: Any = settings
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _ABSENT
        found = found[part]
    return found


def truncate_record(run: RunFolder, step: int, every: int) -> int | None:
    """Truncate the record to `step`; return the step of its last remaining probe.

    A probe at `step` that is off the schedule was taken because training ended there. A longer training would not have
    taken it, so it is removed too.
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
    """Both values; of two mappings only the keys that differ."""
    if not isinstance(now, Mapping) or not isinstance(then, Mapping):
        return now, then
    keys = [key for key in {**now, **then} if now.get(key) != then.get(key)]
    return {key: now.get(key) for key in keys}, {key: then.get(key) for key in keys}
