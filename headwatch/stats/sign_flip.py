"""Sign-flip permutation test of many means at once, without drawing random numbers.

If the pairs' differences are symmetric about zero, every pattern of signs is equally likely, and the exact p is
P(|sum of e_i v_i| >= |sum of v_i|) over random signs e. With few pairs all patterns are enumerated. With more pairs,
random patterns cannot resolve the small p that Benjamini-Hochberg over hundreds of heads requires (0.01 / 336, and less
at later probes), so the tail is computed: a saddlepoint approximation (Lugannani and Rice 1980; Daniels 1983) of the
same permutation distribution, whose cumulant generating function is the sum of log cosh(theta v_i).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]

MOST_ENUMERATED = 14  # pairs: 2^13 patterns up to a common sign
_NEWTON_STEPS = 80


def sign_flip_p(values: ArrayLike) -> Floats:
    """Two-sided p values of "the mean over axis 0 is zero".

    Exact for N <= 14; above that the saddlepoint approximation (error: tests/stats/test_sign_flip.py). No p is smaller
    than 2^(1 - m), where m is the number of values that are not 0.

    Args:
        values: [N, ...].

    Returns:
        [...].
    """
    v = np.asarray(values, np.float64)
    shape, v = v.shape[1:], v.reshape(len(v), -1)
    p = enumerated(v) if len(v) <= MOST_ENUMERATED else saddlepoint(v)
    return p.reshape(shape)


def enumerated(values: Floats) -> Floats:
    """Exact p of each column of values [N, K], over all 2^N patterns of signs.

    Equal to scipy.stats.permutation_test(permutation_type="samples"), which takes about twelve times as long.
    """
    n = len(values)
    patterns = np.arange(2 ** max(n - 1, 0))  # the first sign is fixed: a pattern and its negative have the same |sum|
    signs = np.ones((len(patterns), n))
    signs[:, 1:] -= 2.0 * ((patterns[:, None] >> np.arange(n - 1)) & 1)
    observed = np.abs(values.sum(axis=0)) * (1.0 - 1e-12)
    count = np.zeros(values.shape[1])
    for rows in np.array_split(signs, max(1, len(signs) // 1024)):
        count += (np.abs(rows @ values) >= observed - 1e-300).sum(axis=0)
    return count / len(patterns)


def saddlepoint(values: Floats) -> Floats:
    """The same p of each column of values [N, K] by Lugannani and Rice's tail formula."""
    norm = np.sqrt((values**2).sum(axis=0))
    v = np.divide(values, norm, out=np.zeros_like(values), where=norm > 0.0)
    s = np.abs(v.sum(axis=0))
    largest = np.abs(v).sum(axis=0)
    n_used = (v != 0.0).sum(axis=0)
    least = np.exp2(1.0 - n_used)
    inside = (s > 1e-3) & (s < largest * (1.0 - 1e-9))
    theta = s.copy()
    remaining = np.flatnonzero(inside)
    for _ in range(_NEWTON_STEPS):  # K' is concave, so Newton steps from the left never overshoot
        slope, curve = _derivatives(theta[remaining], v[:, remaining])
        step = (s[remaining] - slope) / np.maximum(curve, 1e-300)
        theta[remaining] += step
        remaining = remaining[np.abs(step) > 1e-8 * (1.0 + theta[remaining])]
        if not len(remaining):
            break
    _, curve = _derivatives(theta, v)
    size = np.abs(theta * v)
    log_cosh = size + np.log1p(np.exp(-2.0 * size)) - np.log(2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.sqrt(np.maximum(2.0 * (theta * s - log_cosh.sum(axis=0)), 0.0))
        u = theta * np.sqrt(curve)
        density = np.exp(-0.5 * w**2) / np.sqrt(2.0 * np.pi)
        tail = ndtr(-w) + density * (1.0 / u - 1.0 / w)
    tail += 0.25 * least  # half the mass of the observed pattern, which a continuous tail omits
    p = np.where(inside, 2.0 * tail, np.where(s <= 1e-3, 2.0 * ndtr(-s), least))
    return np.clip(np.where(np.isfinite(p), p, 1.0), np.minimum(least, 1.0), 1.0)


def _derivatives(theta: Floats, v: Floats) -> tuple[Floats, Floats]:
    """First and second derivative of the cumulant generating function, each [K]."""
    t = np.tanh(theta * v)
    return (v * t).sum(axis=0), (v**2 * (1.0 - t**2)).sum(axis=0)
