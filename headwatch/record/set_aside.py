"""Moving records aside instead of deleting them: a whole record, or what is later than a step."""

import os
from functools import partial
from pathlib import Path

from headwatch.io.atomic import write_atomic
from headwatch.io.jsonl import read_lines
from headwatch.record.layout import LOGS, RECORD, SCORES, scored_steps, scores_path
from headwatch.record.owner import LOCK
from headwatch.record.schema import row_problem


def set_aside(folder: Path) -> Path | None:
    """Move the record in `folder` to previous-<n>/ inside it; returns that path, or None where there is no record."""
    record = [name for name in RECORD if (folder / name).exists()]
    if not record:
        return None
    aside = _numbered(folder, "previous")
    if (folder / LOCK).exists():  # without a writer: its status can be known there too
        (aside / LOCK).touch()
    for name in record:  # the manifest goes last: until then the folder still opens as the old record
        os.replace(folder / name, aside / name)
    return aside


def set_aside_after(folder: Path, step: int, last_probe: int | None = None) -> Path | None:
    """Move what is later than `step` to resumed-<n>/; returns that path, or None where nothing is later.

    Args:
        folder: a run folder.
        step: last step of training.jsonl that stays.
        last_probe: last step of the scores and of the other logs that stays; None is `step`.
    """
    last_probe = step if last_probe is None else last_probe
    late_steps = [s for s in scored_steps(folder) if s > last_probe]
    kept: dict[str, list[str]] = {}
    late: dict[str, list[str]] = {}
    for name in LOGS:
        last = step if name == "training.jsonl" else last_probe
        for line, row in read_lines(folder / name, partial(row_problem, name)):
            # An invalid line comes from the crash, so it goes with the late ones.
            side = kept if row is not None and row["step"] <= last else late
            side.setdefault(name, []).append(line)
    if not late_steps and not late:
        return None
    aside = _numbered(folder, "resumed")
    (aside / SCORES).mkdir()
    for name, lines in late.items():
        write_atomic(aside / name, "".join(f"{line}\n" for line in lines).encode())
    for name in late:
        write_atomic(folder / name, "".join(f"{line}\n" for line in kept.get(name, [])).encode())
    for late_step in late_steps:
        os.replace(scores_path(folder, late_step), scores_path(aside, late_step))
    return aside


def _numbered(folder: Path, kind: str) -> Path:
    """A new, empty folder kind-<n> inside the run folder."""
    number = 1
    while True:
        try:
            (folder / f"{kind}-{number}").mkdir()
            return folder / f"{kind}-{number}"
        except FileExistsError:
            number += 1
