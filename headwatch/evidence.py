"""Evidence: which changes of a head's share are real, from per-pair scores of frozen pairs. Pure numpy.

The pairs never change, so a head is compared with itself pair by pair, which cancels most of the sampling noise that
drowns membership counts. A *share* is a ratio of means, mean head score / mean (metric_corrupted - metric_clean), so
its change is tested by linearised per-pair influence values. Nothing here reads or moves a global random state.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from headwatch.errors import UserError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

OK = "ok"
INSUFFICIENT = "insufficient signal"


@dataclass(frozen=True)
class EvidenceSettings:
    """The numbers of the evidence rule; every field is a default that was chosen, not tuned on a run.

    carry: a head enters the active set inside the smallest set of heads that carries this part of the total |share|.
    keep: a head that was in the set leaves it only outside the smallest set that carries this part (hysteresis). Where
      no true share changes (270 heads, about 42 in the set, 32 pairs), 1.9 heads cross the edge a probe without a band
      (keep = carry), 0.30 with 0.85 and 0.27 with 0.90 or 0.95: the narrowest band that does the work.
    q: Benjamini-Hochberg level over all heads of one family at one probe.
    material: the smallest change that counts, as a part of the base's total |share|.
    min_pairs: a family with fewer pairs says nothing.
    min_gap_t: a probe whose mean metric gap has a smaller |t| over pairs says nothing: a ratio needs a denominator. 4
      bounds the relative error of the gap by 25 %, and a true gap of zero passes 1 time in 2,700 (32 normal pairs).
    """

    carry: float = 0.80
    keep: float = 0.85
    q: float = 0.01
    material: float = 0.005
    min_pairs: int = 8
    min_gap_t: float = 4.0

    def __post_init__(self) -> None:
        if not 0.0 < self.carry <= self.keep <= 1.0:
            raise UserError(
                f"carry={self.carry}, keep={self.keep}: give 0 < carry <= keep <= 1, for example 0.8 and 0.85"
            )
        if not 0.0 < self.q < 1.0:
            raise UserError(f"q={self.q}: give a false-discovery level between 0 and 1, for example 0.01")
        if self.material < 0.0 or self.min_gap_t < 0.0:
            raise UserError(f"material={self.material}, min_gap_t={self.min_gap_t}: neither can be negative")
        if self.min_pairs < 2:
            raise UserError(f"min_pairs={self.min_pairs}: a paired test needs 2 pairs at the least")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EvidenceSettings":
        """Settings from a manifest; keys that this version does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclass(frozen=True)
class Shares:
    """The shares of one probe, and what each pair contributes to their error.

    share: [L, H], mean head score / mean gap. The `input` node's share is +1, a useful head's is positive.
    influence: [N, L, H], (s_i - share g_i) / G: its mean is 0, its variance / N the delta-method variance of the share.
    resolution: [L, H], how finely float32 scores can tell shares apart; no standard error is taken to be smaller.
    """

    share: Floats
    influence: Floats
    resolution: Floats

    @property
    def standard_error(self) -> Floats:
        """Delta-method standard error of each share, [L, H]."""
        return np.maximum(_standard_error(self.influence), self.resolution)

    def where(self, heads: Bools, other: "Shares") -> "Shares":
        """These shares, with `other`'s in the heads [L, H] that are True."""
        return Shares(
            np.where(heads, other.share, self.share),
            np.where(heads, other.influence, self.influence),
            np.where(heads, other.resolution, self.resolution),
        )


@dataclass(frozen=True)
class Change:
    """A paired change of every head's share: `difference` = after - before; all fields [L, H]."""

    difference: Floats
    standard_error: Floats
    p_value: Floats
    q_value: Floats


def gap_t(metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> float:
    """t statistic of the mean metric gap over pairs; 0 where it says nothing (one pair, no gap, not finite)."""
    gap = np.asarray(metric_corrupted, np.float64) - np.asarray(metric_clean, np.float64)
    if len(gap) < 2 or not np.isfinite(gap).all():
        return 0.0
    mean, error = gap.mean(), _standard_error(gap)
    if error == 0.0:
        return 0.0 if mean == 0.0 else float(np.copysign(np.inf, mean))
    return float(mean / error)


def signal(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike, settings: EvidenceSettings) -> str:
    """Either "ok" or "insufficient signal": too few pairs, a mean gap near zero, or values that are not finite."""
    scores = np.asarray(scores)
    enough = len(scores) >= settings.min_pairs and bool(np.isfinite(scores).all())
    return OK if enough and abs(gap_t(metric_clean, metric_corrupted)) >= settings.min_gap_t else INSUFFICIENT


def shares(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> Shares:
    """Shares of the heads and their influence values.

    scores: [N, L, H] signed head scores. metric_clean, metric_corrupted: [N]. A mean gap of exactly zero is an error;
    ask `signal` first.
    """
    s, gap = _checked(scores, metric_clean, metric_corrupted)
    mean_gap = gap.mean()
    if mean_gap == 0.0:
        raise UserError("the mean metric gap is zero, so a share is undefined: ask evidence.signal() first")
    share = s.mean(axis=0) / mean_gap
    influence = (s - share * gap[:, None, None]) / mean_gap
    resolution = np.finfo(np.float32).eps * np.abs(s).mean(axis=0) / abs(mean_gap)
    return Shares(share, influence, resolution)


def paired_change(before: Shares, after: Shares) -> Change:
    """Two-sided paired t test (N - 1 degrees of freedom) of every head's share, on the same pairs in the same order.

    v_i = after.influence_i - before.influence_i, standard error = sd(v) / sqrt(N). A difference of exactly zero has
    p = 1. q_value is Benjamini-Hochberg over all heads.

    What it promises, simulated with 270 heads and 8 to 64 pairs where no share changes (300 runs each): some head has
    q <= 0.01 in at most 1 % of runs with normal, heavy-tailed (t with 3 degrees of freedom) or sparse noise (one pair
    in ten). It takes the noise as symmetric: with log-normal noise (skewness 6) 16 % to 81 % of runs have such a head,
    and materiality is what holds (in at most 1.3 % of runs a change of 0.5 % too; 11 % to 22 % with noise as large as
    the heads' own scores).
    """
    n_pairs = len(after.influence)
    if len(before.influence) != n_pairs:
        raise UserError(f"a paired change needs the same pairs: {len(before.influence)} before, {n_pairs} after")
    difference = after.share - before.share
    floor = np.hypot(before.resolution, after.resolution)
    error = np.maximum(_standard_error(after.influence - before.influence), floor)
    t = np.divide(difference, error, out=np.zeros_like(difference), where=difference != 0.0)
    p_value = np.where(difference == 0.0, 1.0, 2.0 * stdtr(n_pairs - 1, -np.abs(t)))
    return Change(difference, error, p_value, benjamini_hochberg(p_value))


def benjamini_hochberg(p_value: ArrayLike) -> Floats:
    """Adjusted p values of any shape: rejecting where the result <= q keeps the false-discovery rate at q."""
    p = np.asarray(p_value, np.float64)
    flat = p.ravel()
    order = np.argsort(flat, kind="stable")[::-1]
    rank = np.arange(flat.size, 0, -1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum.accumulate(np.minimum(flat[order] * flat.size / rank, 1.0))
    return adjusted.reshape(p.shape)


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


# --- how stable one probe is: halves, resamples ---------------------------------------------------------------------


def split_half_agreement(scores: ArrayLike, splits: int = 10, seed: int = 0) -> float:
    """Spearman correlation over heads between mean scores of two random halves of the pairs, mean over `splits`.

    scores: [N, L, H]. NaN with fewer than 4 pairs, or where a score is not finite.
    """
    s = np.asarray(scores, np.float64)
    if len(s) < 4 or not np.isfinite(s).all():
        return float("nan")
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(s)), 2) for _ in range(splits)]
    return float(np.mean([spearman(s[one].mean(axis=0), s[other].mean(axis=0)) for one, other in halves]))


def bootstrap_shares(
    scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Floats:
    """Shares of `resamples` bootstrap samples of the pairs, [resamples, L, H]. Quantiles of axis 0 are intervals."""
    s, gap = _checked(scores, metric_clean, metric_corrupted)
    n_pairs = len(s)
    weights = np.random.default_rng(seed).multinomial(n_pairs, np.full(n_pairs, 1.0 / n_pairs), size=resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = (weights @ s.reshape(n_pairs, -1)) / (weights @ gap)[:, None]
    return resampled.reshape(resamples, *s.shape[1:])


def share_interval(estimate: Shares, level: float = 0.95) -> tuple[Floats, Floats]:
    """Delta-method interval of every share: (lower, upper), each [L, H]."""
    reach = stdtrit(len(estimate.influence) - 1, 0.5 + level / 2.0) * estimate.standard_error
    return estimate.share - reach, estimate.share + reach


@dataclass(frozen=True)
class NullBand:
    """How many heads enter or leave the active set when nothing but the sample of pairs changes.

    changes: [resamples] heads that are in one set and not in the other. A run's count of membership changes means
    nothing inside (low, high), the central 95 %.
    """

    changes: NDArray[np.int64]

    @property
    def median(self) -> float:
        """The typical number of changes by chance."""
        return float(np.median(self.changes))

    @property
    def low(self) -> float:
        """2.5 % quantile."""
        return float(np.quantile(self.changes, 0.025))

    @property
    def high(self) -> float:
        """97.5 % quantile."""
        return float(np.quantile(self.changes, 0.975))


def null_band(
    scores: ArrayLike,
    metric_clean: ArrayLike,
    metric_corrupted: ArrayLike,
    settings: EvidenceSettings | None = None,
    *,
    how: str = "resamples",
    resamples: int = 200,
    seed: int = 0,
) -> NullBand:
    """Membership changes between two samples of the pairs of *one* probe.

    how: "resamples", two bootstrap samples of N pairs (the noise of comparing two probes of N fresh pairs), or
    "halves", two disjoint halves (no pair is shared, but each has only N / 2 of them).
    """
    settings = settings or EvidenceSettings()
    s, _ = _checked(scores, metric_clean, metric_corrupted)
    # The gap only scales all shares, and a set that is defined by parts of a total does not see that.
    means = (_samples(len(s), how, resamples, seed) @ s.reshape(len(s), -1)).reshape(2, resamples, *s.shape[1:])
    one, other = carrying_set(means, settings.carry)
    return NullBand((one ^ other).sum(axis=(1, 2)))


def _samples(n_pairs: int, how: str, resamples: int, seed: int) -> Floats:
    """Weights of the pairs in the two samples of each resample, [2 * resamples, N], each row of sum 1."""
    rng = np.random.default_rng(seed)
    if how == "resamples":
        return rng.multinomial(n_pairs, np.full(n_pairs, 1.0 / n_pairs), size=2 * resamples) / n_pairs
    if how == "halves":
        first = np.argsort(rng.random((resamples, n_pairs)), axis=1) < n_pairs // 2
        halves = np.concatenate([first, ~first]).astype(np.float64)
        return halves / halves.sum(axis=1, keepdims=True)
    raise UserError(f"how={how!r}: give 'resamples' or 'halves'")


# --- small statistics -----------------------------------------------------------------------------------------------


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Rank correlation with average ranks for ties; NaN with fewer than 3 values or where one side is constant."""
    a, b = (_ranks(np.asarray(x, np.float64).ravel()) for x in (one, other))
    if len(a) < 3:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0.0 else float("nan")


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def _standard_error(values: Floats) -> Any:
    """Standard error of the mean over axis 0."""
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _checked(scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> tuple[Floats, Floats]:
    """Float64 scores [N, L, H] and gaps [N]; one clear line where shapes do not fit."""
    s = np.asarray(scores, np.float64)
    clean, corrupted = np.asarray(metric_clean, np.float64), np.asarray(metric_corrupted, np.float64)
    if s.ndim != 3 or clean.shape != s.shape[:1] or corrupted.shape != s.shape[:1]:
        raise UserError(
            f"scores {s.shape}, metric_clean {clean.shape}, metric_corrupted {corrupted.shape}: "
            "give [N, L, H], [N] and [N] of the same N pairs"
        )
    return s, corrupted - clean
