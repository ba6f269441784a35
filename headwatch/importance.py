"""Importance of heads: normalisation, the effect of training on it, and how concentrated it is. Pure numpy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-6  # the paper's, in E(l, h)


def effect(importance_post: ArrayLike, importance_pre: ArrayLike) -> NDArray[np.float64]:
    """E(l, h) = (I_post - I_pre) / (I_post + I_pre + 1e-6), in [-1, 1] (arXiv 2509.25758).

    Both [L, H] (or any shapes that broadcast), the importance of every head, normalised to sum 1 over heads.
    """
    post, pre = np.asarray(importance_post, np.float64), np.asarray(importance_pre, np.float64)
    return (post - pre) / (post + pre + EPSILON)


def normalised(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sizes of any shape over their sum; zeros where the sum is zero."""
    total = size.sum()
    return size / total if total > 0.0 else np.zeros_like(size)


def entropy(importance: NDArray[np.float64]) -> float:
    """Entropy over heads as a part of the largest possible one: 1 when all heads weigh the same."""
    p = importance[importance > 0.0]
    return float(-(p * np.log(p)).sum() / np.log(importance.size)) if len(p) and importance.size > 1 else float("nan")


def kurtosis(importance: NDArray[np.float64]) -> float:
    """Excess kurtosis over heads: large when few heads carry much."""
    z = importance - importance.mean()
    variance = (z**2).mean()
    return float((z**4).mean() / variance**2 - 3.0) if variance > 0.0 else float("nan")
