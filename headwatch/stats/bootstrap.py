"""Stability of one probe over its pairs: split halves, bootstrap samples, membership changes due to sampling alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.stats.lagged_correlation import spearman
from headwatch.stats.settings import EvidenceSettings
from headwatch.stats.shares import Floats, carrying_set


def pair_weights(n_pairs: int, resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Bootstrap weights: how often each sample of n_pairs pairs draws each pair, [resamples, n_pairs]."""
    return rng.multinomial(n_pairs, np.full(n_pairs, 1.0 / n_pairs), size=resamples)


def split_half_agreement(scores: ArrayLike, splits: int = 10, seed: int = 0) -> float:
    """Spearman correlation over heads between the mean scores of two random halves of the pairs.

    Args:
        scores: [N, L, H].
        splits: number of random splits; the result is their mean.
        seed: seed of the splits.

    Returns:
        The correlation; NaN with fewer than 4 pairs or where a score is not finite.
    """
    s = np.asarray(scores, np.float64)
    if len(s) < 4 or not np.isfinite(s).all():
        return float("nan")
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(s)), 2) for _ in range(splits)]
    return float(np.mean([spearman(s[one].mean(axis=0), s[other].mean(axis=0)) for one, other in halves]))


def bootstrap_importance(scores: ArrayLike, resamples: int = 200, seed: int = 0) -> Floats:
    """The evidence rule's importance in bootstrap samples of the pairs.

    The metric gap scales all shares alike, so it cancels. The same seed draws the same pairs at every probe.

    Args:
        scores: [N, L, H].
        resamples: number of bootstrap samples.
        seed: seed of the samples.

    Returns:
        [resamples, L, H], sum 1 over heads.
    """
    s = np.asarray(scores, np.float64)
    weights = pair_weights(len(s), resamples, np.random.default_rng(seed))
    size = np.abs(weights @ s.reshape(len(s), -1)).reshape(resamples, *s.shape[1:])
    return size / np.maximum(size.sum(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class NullBand:
    """Number of heads that enter or leave the active set when only the sample of pairs changes.

    A run's count of membership changes is not evidence while it is inside (low, high), the central 95 %.

    Attributes:
        changes: [resamples] heads that are in one of two sets and not in the other.
    """

    changes: NDArray[np.int64]

    @property
    def median(self) -> float:
        """Median number of changes."""
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
    scores: ArrayLike, settings: EvidenceSettings | None = None, *, resamples: int = 200, seed: int = 0
) -> NullBand:
    """Membership changes between two bootstrap samples of the pairs of one probe.

    This is the noise of comparing two probes of N fresh pairs each.

    Args:
        scores: [N, L, H].
        settings: `carry` defines the set; None: the defaults.
        resamples: number of pairs of samples.
        seed: seed of the samples.
    """
    settings = settings or EvidenceSettings()
    s = np.asarray(scores, np.float64)
    weights = pair_weights(len(s), 2 * resamples, np.random.default_rng(seed)) / len(s)
    # The metric gap scales all shares alike, which does not change the set.
    means = (weights @ s.reshape(len(s), -1)).reshape(2, resamples, *s.shape[1:])
    one, other = carrying_set(means, settings.carry)
    return NullBand((one ^ other).sum(axis=(1, 2)))
