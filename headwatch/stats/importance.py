"""Importance of heads: normalisation, the effect of training on it, and its concentration."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-6  # the paper's, in E(l, h)


def effect(importance_post: ArrayLike, importance_pre: ArrayLike) -> NDArray[np.float64]:
    """Effect of training on importance, E(l, h) = (I_post - I_pre) / (I_post + I_pre + 1e-6) (arXiv 2509.25758).

    Args:
        importance_post: importance of every head after training, sum 1 over heads, [L, H] or any shape.
        importance_pre: the same before training; the shapes must broadcast.

    Returns:
        Values in [-1, 1], in the broadcast shape.

    >>> effect([0.5, 0.1], [0.25, 0.3]).round(3)
    array([ 0.333, -0.5  ])
    """
    post, pre = np.asarray(importance_post, np.float64), np.asarray(importance_pre, np.float64)
    return (post - pre) / (post + pre + EPSILON)


def quantile_of(draws: ArrayLike, part: float) -> NDArray[np.float64]:
    """The quantile over axis 0 of draws [B, ...]; NaN where B = 0."""
    d = np.asarray(draws, np.float64)
    return np.quantile(d, part, axis=0) if len(d) else np.full(d.shape[1:], np.nan)


class EffectDraws:
    """Interval of the mean effect over the probes after the base, by a paired bootstrap over the pairs.

    Each probe adds its importance in the same B resamples of the same pairs. E is computed against the base resample by
    resample and averaged over the probes. Once a probe has no resamples there is no interval: it would cover only some
    of the probes that the effect is averaged over.
    """

    def __init__(self) -> None:
        self._base: NDArray[np.float32] | None = None
        self._sum: NDArray[np.float64] | None = None
        self._after = 0
        self._broken = False

    def add(self, draws: ArrayLike | None) -> None:
        """Add one probe's importance in every resample, [B, L, H], the base first; None: not resampled."""
        drawn = None if draws is None else np.asarray(draws, np.float32)
        if drawn is None or not len(drawn) or (self._base is not None and drawn.shape != self._base.shape):
            self._broken = True
        elif self._base is None:
            self._base = drawn
        else:
            effects = effect(drawn, self._base)
            self._sum = effects if self._sum is None else self._sum + effects
            self._after += 1

    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """(lower, upper), each [L, H]: the central 95 % of the resamples, head by head; None: not available."""
        if self._broken or self._sum is None:
            return None
        mean = self._sum / self._after
        return quantile_of(mean, 0.025), quantile_of(mean, 0.975)


def normalised(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sizes of any shape divided by their sum; zeros where the sum is zero."""
    total = size.sum()
    return size / total if total > 0.0 else np.zeros_like(size)


def intensity(raw: NDArray[np.float64]) -> float:
    """Sum over heads of |mean raw head score|, in the metric's units."""
    return float(np.abs(raw).sum())


# scipy.stats.entropy and kurtosis differ from these two in the last bits, and records contain the values.


def entropy(importance: NDArray[np.float64]) -> float:
    """Entropy over heads divided by its maximum: 1 when all heads have equal importance."""
    p = importance[importance > 0.0]
    return float(-(p * np.log(p)).sum() / np.log(importance.size)) if len(p) and importance.size > 1 else float("nan")


def kurtosis(importance: NDArray[np.float64]) -> float:
    """Excess kurtosis over heads: large when few heads have most of the importance."""
    z = importance - importance.mean()
    variance = (z**2).mean()
    return float((z**4).mean() / variance**2 - 3.0) if variance > 0.0 else float("nan")
