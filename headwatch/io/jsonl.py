"""Append-only logs, one JSON object per line."""

import json
import warnings
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_lines(path: Path) -> list[tuple[str, Row | None]]:
    """Every line of a log with its row; None, and a warning, for a line that cannot be read."""
    if not path.is_file():
        return []
    found: list[tuple[str, Row | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            warnings.warn(f"{path}, line {number}: cut short or not a row of a run folder; ignored", stacklevel=3)
            row = None
        found.append((line, row))
    return found


def latest_rows(path: Path) -> list[Row]:
    """The rows of a log in order of step. Where steps go back (a run resumed without a cut) the later telling holds."""
    told: list[Row] = []
    for _, row in read_lines(path):
        if row is None:
            continue
        if told and row["step"] < told[-1]["step"]:
            told = [earlier for earlier in told if earlier["step"] < row["step"]]
        told.append(row)
    return told


def merged_rows(rows: list[Row]) -> list[Row]:
    """One row per step; where a step has several, later values win."""
    by_step: dict[int, Row] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    return list(by_step.values())
