"""Rank correlation, in plain numpy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Rank correlation with average ranks for ties; NaN with fewer than 3 values or where one side is constant."""
    a, b = (ranks(np.asarray(x, np.float64).ravel()) for x in (one, other))
    if len(a) < 3:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0.0 else float("nan")


def ranks(values: Floats) -> Floats:
    """Ranks from 1, the average of them for ties. values: [n]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
