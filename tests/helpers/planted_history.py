"""A HeadHistory of 3 layers x 4 heads whose true shares a test sets probe by probe."""

import numpy as np
from numpy.typing import NDArray

from headwatch.lives.history import HeadHistory
from headwatch.lives.states import HeadState

Floats = NDArray[np.float64]
L, H, N = 3, 4, 32
BASE = np.array([[0.30, 0.25, 0.01, 0.01], [0.20, 0.01, 0.01, 0.01], [0.12, 0.01, 0.01, 0.01]])


class PlantedHistory:
    """Probes with given true shares on frozen pairs, and a little noise.

    Attributes:
        history: the HeadHistory.
        gap: metric gap of each pair, [N].
        taste: the constant deviation of each pair from the true shares, [N, L, H].
    """

    def __init__(self, seed: int = 0, noise: float = 0.002, n_pairs: int = N, **options: object) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = noise
        self.gap = -5.0 * np.exp(0.2 * self.rng.standard_normal(n_pairs))
        self.taste = 0.02 * self.rng.standard_normal((n_pairs, L, H))
        self.history = HeadHistory(L, H, family="addition", **options)  # type: ignore[arg-type]

    def scores(self, share: Floats) -> Floats:
        drift = self.noise * self.rng.standard_normal(self.taste.shape)
        return self.gap[:, None, None] * (share + self.taste + drift)

    def add(self, step: int, share: Floats, size: float = 1.0) -> list[str]:
        """Add a probe; returns its events as "kind layer.head". size scales the whole task."""
        clean = -0.5 * self.gap * size
        events = self.history.add(step, size * self.scores(share), clean, clean + size * self.gap)
        return [f"{e.kind} {e.layer}.{e.head}" for e in events]


def shares(**heads: float) -> Floats:
    """BASE with some heads set, named h<layer><head>."""
    share = BASE.copy()
    for name, value in heads.items():
        share[int(name[1]), int(name[2])] = value
    return share


def state_labels(history: HeadHistory, layer: int, head: int) -> list[str]:
    """The head's state at every probe."""
    return [HeadState(s).label for s in history.state[:, layer, head]]
