"""The sampled answers on disk: one JSON line per answer, resumable after any kill."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.io.jsonl import append_rows
from headwatch.io.plain_json import plain

SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"


class SampleFile:
    """The answers of one model (and one arm) to one benchmark.

    A batch counts once all its rows are on disk; `done` removes the rows of an incomplete one, which a kill left.

    Args:
        folder: where settings.json and samples.jsonl are.
        settings: what defines the answers; a folder with other settings is refused.
        sizes: number of rows of each batch.

    Raises:
        UserError: the folder holds answers made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], sizes: Sequence[int]) -> None:
        self.path = folder / SAMPLES
        self._sizes = sizes
        wanted = plain(dict(settings))
        file = folder / SETTINGS
        if file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            for name in {**known, **wanted}:
                if name == "weights" and name not in known:  # of a folder that an older version wrote
                    continue
                if known.get(name) != wanted.get(name):
                    raise UserError(
                        f"{folder} holds answers with {name}={known.get(name)!r}, and now it is {wanted.get(name)!r}: "
                        "give another --out, or the same settings"
                    )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (json.dumps(wanted, indent=1) + "\n").encode())

    def done(self) -> set[int]:
        """The complete batches."""
        rows = self._rows()
        counts = Counter(row["batch"] for row in rows)
        complete = {batch for batch, n in counts.items() if n == self._sizes[batch]}
        kept = [row for row in rows if row["batch"] in complete]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept).encode()
        if self.path.is_file() and self.path.read_bytes() != text:
            write_atomic(self.path, text)
        return complete

    def append(self, batch: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a batch."""
        append_rows(self.path, [{"batch": batch, **row} for row in rows])

    def rows(self) -> list[dict[str, Any]]:
        """All answers, by problem and sample."""
        return sorted(self._rows(), key=lambda row: (row["problem"], row["sample"]))

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except ValueError:  # a kill cut it short
                continue
            if isinstance(row, dict) and isinstance(row.get("batch"), int) and 0 <= row["batch"] < len(self._sizes):
                found.append(row)
        return found


def grade_matrix(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], NDArray[np.float64]]:
    """(ids [P], grades [P, n]) of the problems whose right answer could be parsed; rows: sorted answers."""
    by_problem: dict[int, list[float | None]] = {}
    for row in rows:
        by_problem.setdefault(row["problem"], []).append(row["correct"])
    graded = {problem: grades for problem, grades in by_problem.items() if None not in grades}
    return list(graded), np.array(list(graded.values()), np.float64).reshape(len(graded), -1)
