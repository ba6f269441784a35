"""The sign-flip permutation test of many means at once, without drawing a random number. Pure numpy.

If the pairs' differences are symmetric about zero, every pattern of signs was as likely as the one that was seen, and
p = P(|sum of e_i v_i| >= |sum of v_i|) over random signs e is exact. Few pairs are enumerated. Counting random patterns
cannot tell the small p apart that Benjamini-Hochberg over hundreds of heads asks for (0.01 / 336, and less at later
probes), so for more pairs the tail is computed: a saddlepoint approximation (Lugannani and Rice 1980; Daniels 1983) of
exactly that permutation distribution, whose cumulant generating function, the sum of log cosh(theta v_i), is known.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]

MOST_ENUMERATED = 14  # pairs: 2^13 patterns up to a common sign
_NEWTON_STEPS = 80


def sign_flip_p(values: ArrayLike) -> Floats:
    """Two-sided p values of "the mean over axis 0 is zero", by flipping signs. values: [N, ...]; result [...].

    Exact for N <= 14; beyond, the saddlepoint approximation (error: tests/stats/test_sign_flip.py).
    No p is smaller than 2^(1 - m), m the number of values that are not 0.
    """
    v = np.asarray(values, np.float64)
    shape, v = v.shape[1:], v.reshape(len(v), -1)
    p = enumerated(v) if len(v) <= MOST_ENUMERATED else saddlepoint(v)
    return p.reshape(shape)


def enumerated(values: Floats) -> Floats:
    """Exact p of each column of values [N, K], over all 2^N patterns of signs."""
    n = len(values)
    patterns = np.arange(2 ** max(n - 1, 0))  # the first sign stays: a pattern and its negative have the same |sum|
    signs = np.ones((len(patterns), n))
    signs[:, 1:] -= 2.0 * ((patterns[:, None] >> np.arange(n - 1)) & 1)
    observed = np.abs(values.sum(axis=0)) * (1.0 - 1e-12)
    beaten = np.zeros(values.shape[1])
    for rows in np.array_split(signs, max(1, len(signs) // 1024)):
        beaten += (np.abs(rows @ values) >= observed - 1e-300).sum(axis=0)
    return beaten / len(patterns)


def saddlepoint(values: Floats) -> Floats:
    """The same p of each column of values [N, K] by Lugannani and Rice's tail formula."""
    norm = np.sqrt((values**2).sum(axis=0))
    v = np.divide(values, norm, out=np.zeros_like(values), where=norm > 0.0)
    s = np.abs(v.sum(axis=0))
    reach = np.abs(v).sum(axis=0)
    n_used = (v != 0.0).sum(axis=0)
    least = np.exp2(1.0 - n_used)
    inside = (s > 1e-3) & (s < reach * (1.0 - 1e-9))
    theta = s.copy()
    going = np.flatnonzero(inside)
    for _ in range(_NEWTON_STEPS):  # K' is concave: Newton's steps from the left never overshoot
        slope, curve = _derivatives(theta[going], v[:, going])
        step = (s[going] - slope) / np.maximum(curve, 1e-300)
        theta[going] += step
        going = going[np.abs(step) > 1e-8 * (1.0 + theta[going])]
        if not len(going):
            break
    _, curve = _derivatives(theta, v)
    size = np.abs(theta * v)
    log_cosh = size + np.log1p(np.exp(-2.0 * size)) - np.log(2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.sqrt(np.maximum(2.0 * (theta * s - log_cosh.sum(axis=0)), 0.0))
        u = theta * np.sqrt(curve)
        density = np.exp(-0.5 * w**2) / np.sqrt(2.0 * np.pi)
        tail = ndtr(-w) + density * (1.0 / u - 1.0 / w)
    tail += 0.25 * least  # half of the observed pattern's own mass, which a smooth tail leaves out
    p = np.where(inside, 2.0 * tail, np.where(s <= 1e-3, 2.0 * ndtr(-s), least))
    return np.clip(np.where(np.isfinite(p), p, 1.0), np.minimum(least, 1.0), 1.0)


def _derivatives(theta: Floats, v: Floats) -> tuple[Floats, Floats]:
    """First and second derivative of the cumulant generating function, each [K]."""
    t = np.tanh(theta * v)
    return (v * t).sum(axis=0), (v**2 * (1.0 - t**2)).sum(axis=0)
