"""Random scores of one probe with a clear metric gap, for tests of statistics."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
N, L, H = 40, 6, 5


def random_probe(
    rng: np.random.Generator, n_pairs: int = N, heads: tuple[int, int] = (L, H), share: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Scores [N, L, H], metric_clean [N], metric_corrupted [N]; share: the true shares [L, H], None: random."""
    clean = 3.0 + rng.standard_normal(n_pairs)
    corrupted = -3.0 + rng.standard_normal(n_pairs)
    share = 0.1 * rng.standard_normal(heads) if share is None else share
    scores = (corrupted - clean)[:, None, None] * (share + 0.05 * rng.standard_normal((n_pairs, *heads)))
    return scores, clean, corrupted
