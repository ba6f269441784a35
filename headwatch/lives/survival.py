"""Kaplan-Meier survival of spells, with the log-log Greenwood interval (scipy.stats.ecdf)."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class KaplanMeier:
    """Part of the spells that survive a time, a step function; all fields are [K].

    Times are known only to the probe interval (interval-censored): a figure must state this.

    Attributes:
        time: training steps since the start of the spell, time[0] = 0.
        survival: the estimate from time[k] on.
        lower: lower end of its 95 % interval; 0 where nothing survives.
        upper: upper end of it; where nothing survives it cannot be estimated and the last one is repeated.
        at_risk: spells under observation just before time[k].
        ended: spells that end at time[k].
        censored: spells that still go on when last seen, at time[k].
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
        """Number of spells."""
        return int(self.ended.sum() + self.censored.sum())

    @property
    def median(self) -> float:
        """The first time at which half or fewer survive; NaN where the curve stays above."""
        below = np.flatnonzero(self.survival <= 0.5 + 1e-12)
        return float(self.time[below[0]]) if len(below) else float("nan")


def kaplan_meier(lengths: ArrayLike, ended: ArrayLike) -> KaplanMeier:
    """Survival of spells.

    Args:
        lengths: how long each spell was observed, [n].
        ended: whether it ended then, bool [n]; False: right-censored.
    """
    from scipy.stats import CensoredData, ecdf

    seen, over = np.asarray(lengths, np.float64), np.asarray(ended, np.bool_)
    time = np.unique(np.append(seen, 0.0))
    curve = ecdf(CensoredData(uncensored=seen[over], right=seen[~over])).sf
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # no interval where all or none survive; set below
        interval = curve.confidence_interval(0.95, method="log-log")
    survival, lower, upper = (step.evaluate(time) for step in (curve, interval.low, interval.high))
    lower[survival == 1.0] = upper[survival == 1.0] = 1.0
    gone = survival == 0.0
    lower[gone] = 0.0
    upper[gone] = upper[~gone][-1] if (~gone).any() else 1.0
    at = seen[:, None] == time
    at_risk = (seen[:, None] >= time).sum(axis=0)
    return KaplanMeier(time, survival, lower, upper, at_risk, (at & over[:, None]).sum(0), (at & ~over[:, None]).sum(0))
