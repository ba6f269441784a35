"""Kaplan-Meier survival of spells, with the log-log Greenwood interval. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class KaplanMeier:
    """The part of spells still going after a time; a step function that starts at (0, 1).

    time: [K] training steps since the spell began, time[0] = 0.
    survival, lower, upper: [K], the estimate from time[k] on and its 95 % interval (log-log Greenwood; where nothing
    survives, an interval cannot be estimated: it is then 0 to the last upper end).
    at_risk, ended, censored: [K] spells under observation just before time[k], ended at it, last seen going at it.
    Times are known only to the cadence of the probes (interval-censored): say so where the curve is drawn.
    """

    time: NDArray[np.float64]
    survival: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    at_risk: NDArray[np.int64]
    ended: NDArray[np.int64]
    censored: NDArray[np.int64]

    @property
    def n_spells(self) -> int:
        """How many spells the curve is made of."""
        return int(self.ended.sum() + self.censored.sum())

    @property
    def median(self) -> float:
        """The first time at which half or fewer survive; NaN where the curve never falls so far."""
        below = np.flatnonzero(self.survival <= 0.5 + 1e-12)
        return float(self.time[below[0]]) if len(below) else float("nan")


def kaplan_meier(lengths: ArrayLike, ended: ArrayLike) -> KaplanMeier:
    """Survival of spells. lengths: [n] how long each was seen; ended: [n] bool, False where it was still going."""
    seen, over = np.asarray(lengths, np.float64), np.asarray(ended, np.bool_)
    time = np.unique(np.append(seen, 0.0))
    deaths, losses, at_risk = (
        np.array([counted(t) for t in time], np.int64)
        for counted in (
            lambda t: (over & (seen == t)).sum(),
            lambda t: (~over & (seen == t)).sum(),
            lambda t: (seen >= t).sum(),
        )
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        survival = np.cumprod(1.0 - deaths / np.maximum(at_risk, 1), dtype=np.float64)
        greenwood = np.cumsum(np.where(deaths > 0, deaths / (at_risk * (at_risk - deaths)), 0.0))
        reach = Z_95 * np.sqrt(greenwood) / np.abs(np.log(survival))
        lower, upper = survival ** np.exp(reach), survival ** np.exp(-reach)
    lower[survival == 1.0] = upper[survival == 1.0] = 1.0
    gone = survival == 0.0
    lower[gone] = 0.0
    upper[gone] = upper[~gone][-1] if (~gone).any() else 1.0
    return KaplanMeier(time, survival, lower, upper, at_risk, deaths, losses)
