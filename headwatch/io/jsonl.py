"""Append-only logs: one JSON object per line, each with an integer "step"."""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Check = Callable[[Row], str | None]  # what is wrong with a row; None if it is valid


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a log, in one write: a reader sees whole lines, or at most one incomplete last line."""
    if not rows:
        return
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with open(path, "ab+") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a crash left the last line incomplete: it must not absorb the first row
                text = "\n" + text
        file.write(text.encode())


def read_lines(path: Path, check: Check | None = None) -> list[tuple[str, Row | None]]:
    """Every line of a log with its row; the row is None where the line is not valid, with one warning for all of them.

    Args:
        path: the log; a missing file has no lines.
        check: what is wrong with a row.
    """
    if not path.is_file():
        return []
    found: list[tuple[str, Row | None]] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        row, problem = _parsed(line, check)
        if problem is not None:
            problems.append(f"line {number}: {problem}")
        found.append((line, row))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        warnings.warn(f"{path}, {problems[0]}; ignored{more}", stacklevel=3)
    return found


def _parsed(line: str, check: Check | None) -> tuple[Row | None, str | None]:
    """The row of a line, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None, "cut short or not JSON"
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None, "not a row of a run folder"
    problem = None if check is None else check(row)
    return (row, None) if problem is None else (None, problem)


def latest_rows(path: Path, check: Check | None = None) -> list[Row]:
    """The valid rows of a log, sorted by step.

    Where the steps go back (a run was resumed and its log was not cut), later rows replace earlier rows of the same or
    a later step.
    """
    latest: list[Row] = []
    for _, row in read_lines(path, check):
        if row is None:
            continue
        if latest and row["step"] < latest[-1]["step"]:
            latest = [earlier for earlier in latest if earlier["step"] < row["step"]]
        latest.append(row)
    return latest


def merged_rows(rows: list[Row]) -> list[Row]:
    """Rows merged by step; later values win."""
    by_step: dict[int, Row] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    return list(by_step.values())
