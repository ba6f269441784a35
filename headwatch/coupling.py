"""Does the number of newly active heads move with the reward? Rank correlation on the probes' step axis. Pure numpy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwatch.evidence import spearman


@dataclass(frozen=True)
class Coupling:
    """Newly active heads beside a logged value, one entry a probe that had the value.

    rho: Spearman correlation of the levels; two series that both drift correlate, whatever the cause. rho_changes: the
    same of their changes from one such probe to the next, which a common trend does not feed. NaN with fewer than 3
    entries or where one side never moves.
    """

    key: str
    steps: tuple[int, ...]
    newly_active: tuple[int, ...]
    value: tuple[float, ...]

    @property
    def rho(self) -> float:
        """Spearman correlation of the levels."""
        return spearman(self.newly_active, self.value)

    @property
    def rho_changes(self) -> float:
        """Spearman correlation of the changes between probes."""
        return spearman(np.diff(self.newly_active), np.diff(self.value))


def couple(steps: Sequence[int], newly_active: Sequence[int], rows: Sequence[Mapping[str, Any]], key: str) -> Coupling:
    """Align a trainer's log with the probes.

    A value logged at step t was measured with the weights before step t, a probe at step t describes those after it.
    So a probe is paired with the mean of the values logged after the probe before it, up to its own step; the first
    probe has no such window.
    """
    logged = [(row["step"], float(row[key])) for row in rows if _is_finite(row.get(key))]
    paired = []
    for index in range(1, len(steps)):
        window = [value for step, value in logged if steps[index - 1] < step <= steps[index]]
        if window:
            paired.append((int(steps[index]), int(newly_active[index]), sum(window) / len(window)))
    at, counts, values = zip(*paired, strict=True) if paired else ((), (), ())
    return Coupling(key, at, counts, values)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
