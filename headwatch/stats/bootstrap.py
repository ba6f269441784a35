"""How stable one probe is over its own pairs: halves, resamples, and the membership changes that come by chance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.errors import UserError
from headwatch.stats.importance import effect
from headwatch.stats.ranks import spearman
from headwatch.stats.settings import EvidenceSettings
from headwatch.stats.shares import Floats, carrying_set, checked


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
    s, gap = checked(scores, metric_clean, metric_corrupted)
    n_pairs = len(s)
    weights = np.random.default_rng(seed).multinomial(n_pairs, np.full(n_pairs, 1.0 / n_pairs), size=resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = (weights @ s.reshape(n_pairs, -1)) / (weights @ gap)[:, None]
    return resampled.reshape(resamples, *s.shape[1:])


def bootstrap_importance(scores: ArrayLike, resamples: int = 200, seed: int = 0) -> Floats:
    """The evidence rule's importance in bootstrap samples of the pairs, [resamples, L, H]; scores: [N, L, H].

    The gap scales all shares alike and does not show. One seed draws the same samples of N pairs at every probe.
    """
    s = np.asarray(scores, np.float64)
    weights = np.random.default_rng(seed).multinomial(len(s), np.full(len(s), 1.0 / len(s)), size=resamples)
    size = np.abs(weights @ s.reshape(len(s), -1)).reshape(resamples, *s.shape[1:])
    return size / np.maximum(size.sum(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny)


Arrays = tuple[ArrayLike, ArrayLike, ArrayLike]  # scores [N, L, H], metric_clean [N], metric_corrupted [N]


def bootstrap_effect(before: Arrays, after: Arrays, resamples: int = 1000, seed: int = 0) -> Floats:
    """The effect E(l, h) of `resamples` bootstrap samples of the pairs, [resamples, L, H]: paired.

    before, after: (scores, metric_clean, metric_corrupted) of the same frozen pairs at two probes; a sample takes the
    same pairs of both. Importance is the evidence rule's, |share| over the total. Quantiles of axis 0 are intervals.
    """
    pre, post = (bootstrap_importance(scores, resamples, seed) for scores, _, _ in (before, after))
    return effect(post, pre)


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
    s, _ = checked(scores, metric_clean, metric_corrupted)
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
