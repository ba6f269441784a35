"""Do the lives of heads move with the reward? Rank correlation over the probes, at a lag, with a p-value. Pure numpy.

The question is asked of *changes* from probe to probe. Heads and reward both drift over a training, so their levels
correlate whatever the cause: of two independent random walks of 50 probes, |rho| > 0.5 in 38 % of 3,000 cases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.stats import spearman
from headwatch.stats.lagged_correlation import MAX_LAG, OK, LaggedCorrelation, lagged_correlation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Coupling:
    """Newly active heads beside a logged value, one entry a probe that had the value.

    rho: Spearman correlation of the levels; two series that both drift correlate, whatever the cause. rho_changes: the
    same of their changes from one such probe to the next, which a common trend does not feed. NaN with fewer than 3
    entries or where one side never moves. `lagged()` is the tested form of it.
    """

    key: str
    steps: tuple[int, ...]
    newly_active: tuple[float, ...]
    value: tuple[float, ...]

    @property
    def rho(self) -> float:
        """Spearman correlation of the levels."""
        return spearman(self.newly_active, self.value)

    @property
    def rho_changes(self) -> float:
        """Spearman correlation of the changes between probes."""
        return spearman(np.diff(self.newly_active), np.diff(self.value))

    def lagged(self, max_lag: int = MAX_LAG) -> LaggedCorrelation:
        """Lagged correlation of the changes between probes; a positive lag: the heads move first."""
        return lagged_correlation(np.diff(self.newly_active), np.diff(self.value), max_lag=max_lag)


def couple(steps: Sequence[int], counts: Sequence[float], rows: Sequence[Mapping[str, Any]], key: str) -> Coupling:
    """Align a trainer's log with the probes. counts: one number a probe, newly active heads or another count.

    A value logged at step t was measured with the weights before step t, a probe at step t describes those after it.
    So a probe is paired with the mean of the values logged after the probe before it, up to its own step; the first
    probe has no such window.
    """
    logged = [(row["step"], float(row[key])) for row in rows if _is_finite(row.get(key))]
    at, values = np.array([step for step, _ in logged]), np.array([value for _, value in logged])
    paired = []
    for index in range(1, len(steps)):
        window = values[(at > steps[index - 1]) & (at <= steps[index])] if logged else values
        if len(window):
            paired.append((int(steps[index]), counts[index], float(window.mean())))
    when, heads, means = zip(*paired, strict=True) if paired else ((), (), ())
    return Coupling(key, when, heads, means)


def coupling_scalars(
    steps: Sequence[int],
    newly_active: Sequence[int],
    turnover: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    key: str,
) -> dict[str, float]:
    """What a live view shows of the coupling with one logged value: of newly active heads and of the turnover.

    newly_active, turnover: one count a probe (Lives.newly_active, Lives.turnover).

    coupling/<key>/<series>/rho, lag (in probes; positive: the heads move first) and p; coupling/<key>/<series>/enough
    is 0 while there is not enough data, and then stands alone.
    """
    scalars: dict[str, float] = {}
    for name, counts in (("newly_active", newly_active), ("turnover", turnover)):
        found = couple(steps, counts, rows, key).lagged()
        scalars[f"coupling/{key}/{name}/enough"] = float(found.status == OK)
        if found.best_lag is not None:
            scalars[f"coupling/{key}/{name}/rho"] = found.best_rho
            scalars[f"coupling/{key}/{name}/lag"] = found.best_lag
            scalars[f"coupling/{key}/{name}/p"] = found.p_value
    return scalars


# --- inside ---------------------------------------------------------------------------------------------------------


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
