"""Correlation of head states with the reward: rank correlation over the probes, at a lag, with a p value.

The test uses *changes* from probe to probe. Heads and reward both drift during training, so their levels correlate
whatever the cause: of two independent random walks of 50 probes, |rho| > 0.5 in 38 % of 3,000 cases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwatch.stats import spearman
from headwatch.stats.lagged_correlation import MAX_LAG, OK, LaggedCorrelation, lagged_correlation


@dataclass(frozen=True)
class Coupling:
    """A count of heads and a logged value, one entry for each probe that has the value.

    Attributes:
        key: name of the logged value.
        steps: steps of the probes.
        newly_active: the count, newly active heads unless `couple` was given another.
        value: mean of the logged values since the probe before.
    """

    key: str
    steps: tuple[int, ...]
    newly_active: tuple[float, ...]
    value: tuple[float, ...]

    @property
    def rho(self) -> float:
        """Spearman correlation of the levels, which correlate whenever both drift.

        NaN with fewer than 3 entries or where one side is constant.
        """
        return spearman(self.newly_active, self.value)

    @property
    def rho_changes(self) -> float:
        """Spearman correlation of the changes between probes, free of a common trend; NaN as above.

        `lagged()` tests it.
        """
        return spearman(np.diff(self.newly_active), np.diff(self.value))

    def lagged(self, max_lag: int = MAX_LAG) -> LaggedCorrelation:
        """Lagged correlation of the changes between probes; at a positive lag the heads change first."""
        return lagged_correlation(np.diff(self.newly_active), np.diff(self.value), max_lag=max_lag)


def couple(steps: Sequence[int], counts: Sequence[float], rows: Sequence[Mapping[str, Any]], key: str) -> Coupling:
    """Align a trainer's log with the probes.

    A value logged at step t was measured with the weights before step t; a probe at step t describes those after it. So
    a probe is paired with the mean of the values logged after the probe before it, up to its own step. The first probe
    has no such window.

    Args:
        steps: steps of the probes, [P].
        counts: number of newly active heads, or another count, [P].
        rows: rows of the trainer's log, each with its "step".
        key: the logged value.
    """
    return _coupled(steps, counts, logged_means(steps, rows, key), key)


def logged_means(steps: Sequence[int], rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Index of a probe -> mean of the values logged since the probe before; probes without any are left out."""
    logged = [(row["step"], float(row[key])) for row in rows if _is_finite(row.get(key))]
    logged.sort(key=lambda entry: entry[0])
    at, values = np.array([step for step, _ in logged]), np.array([value for _, value in logged])
    ends = np.searchsorted(at, steps, side="right")
    windows = ((index, values[ends[index - 1] : ends[index]]) for index in range(1, len(steps)))
    return {index: float(window.mean()) for index, window in windows if len(window)}


def _coupled(steps: Sequence[int], counts: Sequence[float], means: Mapping[int, float], key: str) -> Coupling:
    when = tuple(int(steps[index]) for index in means)
    return Coupling(key, when, tuple(counts[index] for index in means), tuple(means.values()))


def coupling_scalars(
    steps: Sequence[int],
    newly_active: Sequence[int],
    turnover: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    key: str,
) -> dict[str, float]:
    """Scalars of the coupling of newly active heads and of the turnover with one logged value.

    Args:
        steps: steps of the probes, [P].
        newly_active: `HeadHistory.newly_active()`, [P].
        turnover: `HeadHistory.turnover()`, [P].
        rows: rows of the trainer's log.
        key: the logged value.

    Returns:
        coupling/<key>/<series>/rho, /lag (in probes; positive: the heads change first), /p, and /enough: 0 while there
        is not enough data, then without the others.
    """
    return means_coupling_scalars(steps, newly_active, turnover, logged_means(steps, rows, key), key)


def means_coupling_scalars(
    steps: Sequence[int],
    newly_active: Sequence[int],
    turnover: Sequence[int],
    means: Mapping[int, float],
    key: str,
) -> dict[str, float]:
    """`coupling_scalars` from `logged_means`, which are the same for all families of a run."""
    scalars: dict[str, float] = {}
    for name, counts in (("newly_active", newly_active), ("turnover", turnover)):
        found = _coupled(steps, counts, means, key).lagged()
        scalars[f"coupling/{key}/{name}/enough"] = float(found.status == OK)
        if found.best_lag is not None:
            scalars[f"coupling/{key}/{name}/rho"] = found.best_rho
            scalars[f"coupling/{key}/{name}/lag"] = found.best_lag
            scalars[f"coupling/{key}/{name}/p"] = found.p_value
    return scalars


# --- inside ---------------------------------------------------------------------------------------------------------


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
