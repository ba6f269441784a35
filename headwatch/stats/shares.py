"""What one probe says of every head, with each pair's part in its error. Pure numpy."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from headwatch.errors import UserError
from headwatch.stats.settings import EvidenceSettings

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
E = TypeVar("E", bound="Estimate")

OK = "ok"
INSUFFICIENT = "insufficient signal"


@dataclass(frozen=True)
class Estimate:
    """A number for every head, and what each pair contributes to its error.

    value: [L, H]. influence: [N, L, H], each pair's linearised part: its mean is 0, its variance / N the delta-method
    variance of the value. resolution: [L, H], how finely float32 scores can tell values apart; no standard error is
    taken to be smaller.
    """

    value: Floats
    influence: Floats
    resolution: Floats

    @property
    def standard_error(self) -> Floats:
        """Delta-method standard error, [L, H]."""
        return np.maximum(error_of_mean(self.influence), self.resolution)

    def where(self: E, heads: Bools, other: E) -> E:
        """This estimate, with `other`'s values in the heads [L, H] that are True (pairs may not be fewer or more)."""
        return type(self)(
            np.where(heads, other.value, self.value),
            np.where(heads, other.influence, self.influence),
            np.where(heads, other.resolution, self.resolution),
        )


class Shares(Estimate):
    """Shares of the heads: mean head score / mean gap. The `input` node's share is +1, a useful head's is positive."""

    @property
    def share(self) -> Floats:
        """The value, [L, H]."""
        return self.value


def gap_t(metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> float:
    """t statistic of the mean metric gap over pairs; 0 where it says nothing (one pair, no gap, not finite)."""
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


def shares(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> Shares:
    """Shares of the heads; a pair's influence is (s_i - share g_i) / G.

    scores: [N, L, H] signed head scores. metric_clean, metric_corrupted: [N]. A mean gap of exactly zero is an error;
    ask `signal` first.
    """
    s, gap = checked(scores, metric_clean, metric_corrupted)
    mean_gap = gap.mean()
    if mean_gap == 0.0:
        raise UserError("the mean metric gap is zero, so a share is undefined: ask evidence.signal() first")
    share = s.mean(axis=0) / mean_gap
    influence = (s - share * gap[:, None, None]) / mean_gap
    return Shares(share, influence, _resolution(s) / abs(mean_gap))


def raw_scores(scores: ArrayLike) -> Estimate:
    """Mean raw head scores [L, H] of scores [N, L, H]: the strength that also shrinks when the whole task does."""
    s = np.asarray(scores, np.float64)
    return Estimate(s.mean(axis=0), s - s.mean(axis=0), _resolution(s))


def importance(of: Shares) -> Estimate:
    """|share| over the sum of |share|, [L, H], by the delta method: the evidence rule's importance.

    Where a share's sign is in doubt |share| has a kink, and the interval of its importance is too narrow there.
    """
    size, sign = np.abs(of.share), np.sign(of.share)
    total = size.sum()
    if total == 0.0:
        return Estimate(np.zeros_like(size), np.zeros_like(of.influence), np.zeros_like(size))
    part = sign * of.influence
    value = size / total
    return Estimate(value, (part - value * part.sum(axis=(1, 2), keepdims=True)) / total, of.resolution / total)


def interval(of: Estimate, level: float = 0.95) -> tuple[Floats, Floats]:
    """Delta-method interval of every value, with Student's quantile: (lower, upper), each [L, H]."""
    reach = stdtrit(len(of.influence) - 1, 0.5 + level / 2.0) * of.standard_error
    return of.value - reach, of.value + reach


# --- the active set -------------------------------------------------------------------------------------------------


def carrying_set(share: ArrayLike, part: float) -> Bools:
    """The smallest set of heads whose |share| sums to at least `part` of the total.

    share: [..., L, H]; the result is bool of the same shape, a set for each leading index.
    """
    size = np.abs(np.asarray(share, np.float64))
    flat = size.reshape(*size.shape[:-2], -1)
    order = np.argsort(-flat, axis=-1, kind="stable")
    ordered = np.take_along_axis(flat, order, axis=-1)
    before = np.cumsum(ordered, axis=-1) - ordered
    # A hair under `part`, so that ten equal heads at 0.8 are eight and not nine by rounding.
    inside = (before < part * ordered.sum(axis=-1, keepdims=True) * (1.0 - 1e-9)) & (ordered > 0.0)
    chosen = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(chosen, order, inside, axis=-1)
    return chosen.reshape(size.shape)


def membership(share: ArrayLike, previous: Bools | None, settings: EvidenceSettings) -> Bools:
    """The active set with hysteresis: enter inside `carry`, leave outside `keep`. previous: the last probe's set."""
    inside = carrying_set(share, settings.carry)
    return inside if previous is None else inside | (previous & carrying_set(share, settings.keep))


# --- inside ---------------------------------------------------------------------------------------------------------


def error_of_mean(values: Floats) -> Any:
    """Standard error of the mean over axis 0."""
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def checked(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> tuple[Floats, Floats]:
    """Float64 scores [N, L, H] and gaps [N]; one clear line where shapes do not fit."""
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
