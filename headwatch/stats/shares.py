"""Estimates of one probe: shares, raw scores and importance of every head, their errors, and the active set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from headwatch.errors import UserError
from headwatch.stats.settings import EvidenceSettings

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

OK = "ok"
INSUFFICIENT = "insufficient signal"


@dataclass(frozen=True)
class Estimate:
    """One value per head, with the contribution of each pair to its error.

    Attributes:
        value: [L, H].
        influence: [N, L, H], linearised contribution of each pair: mean 0, variance / N the delta-method variance of
            the value.
        resolution: [L, H], the smallest difference that float32 scores resolve; a lower bound of the standard error.
    """

    value: Floats
    influence: Floats
    resolution: Floats

    @property
    def standard_error(self) -> Floats:
        """Delta-method standard error, [L, H]."""
        return np.maximum(error_of_mean(self.influence), self.resolution)

    def where(self, heads: Bools, other: "Estimate") -> "Estimate":
        """`other` in the heads [L, H] that are True, this estimate elsewhere; both have the same number of pairs."""
        return Estimate(
            np.where(heads, other.value, self.value),
            np.where(heads, other.influence, self.influence),
            np.where(heads, other.resolution, self.resolution),
        )


def gap_t(metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> float:
    """t statistic of the mean metric gap over pairs; 0 with one pair, no gap, or values that are not finite."""
    gap = np.asarray(metric_corrupted, np.float64) - np.asarray(metric_clean, np.float64)
    if len(gap) < 2 or not np.isfinite(gap).all():
        return 0.0
    mean, error = gap.mean(), error_of_mean(gap)
    if error == 0.0:
        return 0.0 if mean == 0.0 else float(np.copysign(np.inf, mean))
    return float(mean / error)


def signal(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike, settings: EvidenceSettings) -> str:
    """Either "ok" or "insufficient signal": too few pairs, a mean gap near zero, or values that are not finite."""
    scores = np.asarray(scores)
    enough = len(scores) >= settings.min_pairs and bool(np.isfinite(scores).all())
    return OK if enough and abs(gap_t(metric_clean, metric_corrupted)) >= settings.min_gap_t else INSUFFICIENT


def shares(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> Estimate:
    """Shares of the heads, mean head score / mean metric gap; the influence of pair i is (s_i - share g_i) / G.

    The share of the `input` node is +1; a head that helps has a positive share.

    Args:
        scores: signed head scores, [N, L, H].
        metric_clean: [N].
        metric_corrupted: [N].

    Raises:
        UserError: shapes do not fit, or the mean gap is exactly zero (call `signal` first).
    """
    s, gap = checked(scores, metric_clean, metric_corrupted)
    mean_gap = gap.mean()
    if mean_gap == 0.0:
        raise UserError("the mean metric gap is zero, so shares are undefined: call stats.signal() first")
    share = s.mean(axis=0) / mean_gap
    influence = (s - share * gap[:, None, None]) / mean_gap
    return Estimate(share, influence, _resolution(s) / abs(mean_gap))


def raw_scores(scores: ArrayLike) -> Estimate:
    """Mean raw head scores [L, H] of scores [N, L, H]; unlike shares they shrink when the metric gap does."""
    s = np.asarray(scores, np.float64)
    return Estimate(s.mean(axis=0), s - s.mean(axis=0), _resolution(s))


def share_importance(share: Estimate) -> Estimate:
    """The evidence rule's importance, |share| / sum of |share|, [L, H], by the delta method.

    |share| has a kink at 0: where the sign of a share is uncertain, the interval of its importance is too narrow.
    """
    size, sign = np.abs(share.value), np.sign(share.value)
    total = size.sum()
    if total == 0.0:
        return Estimate(np.zeros_like(size), np.zeros_like(share.influence), np.zeros_like(size))
    part = sign * share.influence
    value = size / total
    return Estimate(value, (part - value * part.sum(axis=(1, 2), keepdims=True)) / total, share.resolution / total)


def interval(of: Estimate, level: float = 0.95) -> tuple[Floats, Floats]:
    """Delta-method interval of every value, with Student's quantile: (lower, upper), each [L, H]."""
    half_width = stdtrit(len(of.influence) - 1, 0.5 + level / 2.0) * of.standard_error
    return of.value - half_width, of.value + half_width


# --- the active set -------------------------------------------------------------------------------------------------


def carrying_set(share: ArrayLike, part: float) -> Bools:
    """The smallest set of heads whose |share| sums to at least `part` of the total.

    Args:
        share: [..., L, H].
        part: in (0, 1].

    Returns:
        bool [..., L, H], one set for each leading index.

    >>> carrying_set([[0.5, 0.3, -0.1, 0.1]], 0.8)
    array([[ True,  True, False, False]])
    """
    size = np.abs(np.asarray(share, np.float64))
    flat = size.reshape(*size.shape[:-2], -1)
    order = np.argsort(-flat, axis=-1, kind="stable")
    ordered = np.take_along_axis(flat, order, axis=-1)
    before = np.cumsum(ordered, axis=-1) - ordered
    # Slightly below `part`: rounding must not make ten equal heads at 0.8 a set of nine.
    inside = (before < part * ordered.sum(axis=-1, keepdims=True) * (1.0 - 1e-9)) & (ordered > 0.0)
    chosen = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(chosen, order, inside, axis=-1)
    return chosen.reshape(size.shape)


def membership(share: ArrayLike, previous: Bools | None, settings: EvidenceSettings) -> Bools:
    """The active set with hysteresis, bool [L, H]: enter inside `carry`, leave outside `keep`.

    previous: the set of the probe before; None at the first one.
    """
    inside = carrying_set(share, settings.carry)
    return inside if previous is None else inside | (previous & carrying_set(share, settings.keep))


# --- inside ---------------------------------------------------------------------------------------------------------


def error_of_mean(values: Floats) -> Any:
    """Standard error of the mean over axis 0."""
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def checked(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> tuple[Floats, Floats]:
    """Float64 scores [N, L, H] and gaps [N]; a UserError where shapes do not fit."""
    s = np.asarray(scores, np.float64)
    clean, corrupted = np.asarray(metric_clean, np.float64), np.asarray(metric_corrupted, np.float64)
    if s.ndim != 3 or clean.shape != s.shape[:1] or corrupted.shape != s.shape[:1]:
        raise UserError(
            f"scores {s.shape}, metric_clean {clean.shape}, metric_corrupted {corrupted.shape}: "
            "give [N, L, H], [N] and [N] of the same N pairs"
        )
    return s, corrupted - clean


def _resolution(scores: Floats) -> Floats:
    return np.finfo(np.float32).eps * np.abs(scores).mean(axis=0)
