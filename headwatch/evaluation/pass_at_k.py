"""pass@k, success@k and their intervals, and paired comparisons of two arms on the same problems."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from scipy.stats import binomtest

from headwatch.stats import sign_flip_p

Floats = NDArray[np.float64]
RESAMPLES = 10_000


def pass_at_k(n: ArrayLike, correct: ArrayLike, k: int) -> Floats:
    """Probability that one of k samples, drawn without replacement from n, is right: 1 - C(n - c, k) / C(n, k).

    Args:
        n: samples per problem, at least k; any shape.
        correct: right ones among them, the same shape.
        k: number of samples drawn.

    >>> pass_at_k(4, [0, 1, 4], 2)
    array([0. , 0.5, 1. ])
    """
    total, right = np.broadcast_arrays(np.asarray(n, np.float64), np.asarray(correct, np.float64))
    wrong = total - right
    with np.errstate(invalid="ignore"):
        log = _log_choose(wrong, k) - _log_choose(total, k)
    none_right = np.where(wrong >= k, np.exp(log), 0.0)
    found: Floats = np.round(1.0 - none_right, 12) + 0.0  # exact zeros and ones, without a sign
    return found


def success_at_k(grades: ArrayLike, k: int) -> Floats:
    """Whether one of the first k samples is right, in their order, [P]; grades: [P, n], 0 or 1."""
    return np.asarray((np.asarray(grades)[:, :k] > 0).any(axis=1), np.float64)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap_mean(per_problem: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over problems with the percentile bootstrap's 95 % interval; problems are resampled, [P]."""
    values = np.asarray(per_problem, np.float64)
    means = values[_draws(len(values), resamples, seed)].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """An arm against another one, on the same problems with the same seeds.

    Attributes:
        difference: of pass@1, with the interval of a bootstrap over problems.
        p_value: sign-flip test of the per-problem differences of accuracy.
        newly_right: problems solved only by this arm; a problem is solved if more than half of its samples are right.
        newly_wrong: problems solved only by the other arm.
        mcnemar_p: exact McNemar test of these two numbers.
    """

    difference: Interval
    p_value: float
    newly_right: tuple[int, ...]
    newly_wrong: tuple[int, ...]
    mcnemar_p: float


def compare(accuracy: ArrayLike, other: ArrayLike, problems: ArrayLike, seed: int = 0) -> Comparison:
    """Compare two arms.

    Args:
        accuracy: share of right samples of each problem in this arm, [P].
        other: the same in the other arm, [P].
        problems: ids of the problems, [P].
        seed: of the bootstrap.
    """
    mine, theirs, ids = (np.asarray(x, np.float64) for x in (accuracy, other, problems))
    moved = mine - theirs
    right = ids[(mine > 0.5) & (theirs <= 0.5)]
    wrong = ids[(mine <= 0.5) & (theirs > 0.5)]
    return Comparison(
        difference=bootstrap_mean(moved, seed=seed),
        p_value=float(sign_flip_p(moved[:, None, None])[0, 0]) if moved.any() else 1.0,
        newly_right=tuple(int(i) for i in right),
        newly_wrong=tuple(int(i) for i in wrong),
        mcnemar_p=mcnemar_p(len(right), len(wrong)),
    )


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test of the problems that changed; 1 if none did."""
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost).pvalue)


def _draws(n: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def _log_choose(n: Floats, k: int) -> Floats:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(np.maximum(n - k, 0.0) + 1.0))
