"""The circuit rule with its stability over resamples of the pairs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.circuits.circuit import TOP_N, Graph, _heads_of, _importance, _kept
from headwatch.stats import NullBand, pair_weights
from headwatch.stats.importance import quantile_of


@dataclass(frozen=True)
class CircuitHeads:
    """What the circuit rule says of every head, and how much of it hangs on the sample of pairs; arrays are [L, H].

    Attributes:
        active: whether the head is in the circuit.
        stability: share of bootstrap resamples of the pairs whose circuit keeps it.
        importance: the paper's I(l, h).
        n_edges: edges left after pruning.
        importance_draws: float32 [resamples, L, H], I(l, h) of every resample. One seed draws the same resamples of N
            pairs at every probe, so a draw of one probe belongs to the same draw of another: their difference or effect
            is a paired bootstrap.
        half_changes: for each split of the pairs into two disjoint halves, how many heads the rule would call emerged
            or dropped between the halves, [splits]: the null band of a count of membership changes.
        half_agreement: Jaccard similarity of the two halves' heads, mean over the splits; NaN without splits.
    """

    active: NDArray[np.bool_]
    stability: NDArray[np.float64]
    importance: NDArray[np.float64]
    n_edges: int
    importance_draws: NDArray[np.float32]
    half_changes: NDArray[np.int64]
    half_agreement: float = float("nan")

    @property
    def importance_low(self) -> NDArray[np.float64]:
        """2.5 % quantile of I(l, h) over the resamples; NaN without any."""
        return quantile_of(self.importance_draws, 0.025)

    @property
    def importance_high(self) -> NDArray[np.float64]:
        """97.5 % quantile of I(l, h) over the resamples; NaN without any."""
        return quantile_of(self.importance_draws, 0.975)

    def scalars(self) -> dict[str, float]:
        """The numbers that a log shows beside the circuit's lives."""
        found: dict[str, float] = {"edges": self.n_edges, "half_agreement": self.half_agreement}
        if self.active.any():
            found["stability"] = float(self.stability[self.active].mean())
        if len(self.half_changes):
            band = NullBand(self.half_changes)
            found["membership_changes_by_chance"] = band.median
            found |= {"membership_changes_by_chance_low": band.low, "membership_changes_by_chance_high": band.high}
        return found


def circuit_heads(
    strength: ArrayLike,
    graph: Graph,
    top_n: float = TOP_N,
    tau: float | None = None,
    resamples: int = 50,
    seed: int = 0,
    splits: int = 10,
) -> CircuitHeads:
    """The circuit rule with its stability.

    Args:
        strength: |edge score| of every pair, [N, S, R].
        graph: what the rows and columns are.
        top_n, tau: see `Circuit.select`.
        resamples: bootstrap samples of the pairs.
        seed: of the samples and splits; the global random state is not touched.
        splits: random splits of the pairs into two halves; none with fewer than 4 pairs.
    """
    per_pair = np.asarray(strength, np.float32)
    n = len(per_pair)
    mean = per_pair.mean(0, dtype=np.float64)
    kept = _kept(mean, graph, top_n, tau)
    rng = np.random.default_rng(seed)
    weights = pair_weights(n, resamples, rng).astype(np.float32) / n
    real = np.flatnonzero(graph.is_real)
    flat = per_pair.reshape(n, -1)[:, real]

    def of(weight: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Heads and importance of the circuit of weighted pairs."""
        weighted = np.zeros(graph.is_real.size)
        weighted[real] = weight @ flat
        matrix = weighted.reshape(graph.is_real.shape)
        keeps = _kept(matrix, graph, top_n, tau)
        return _heads_of(keeps, graph), _importance(matrix, keeps, graph)

    times_kept, importance = np.zeros(graph.shape), np.zeros((resamples, *graph.shape), np.float32)
    for index, weight in enumerate(weights):  # one at a time: a large model's would not all fit beside training
        active, importance[index] = of(weight)
        times_kept += active
    changes, overlaps = [], []
    for _ in range(splits if n >= 4 else 0):
        half = np.zeros(n, np.float32)
        half[rng.permutation(n)[: n // 2]] = 1.0
        one, other = (of(part / part.sum())[0] for part in (half, 1.0 - half))
        changes.append(int((one ^ other).sum()))
        overlaps.append(float((one & other).sum() / max((one | other).sum(), 1)))
    return CircuitHeads(
        active=_heads_of(kept, graph),
        stability=times_kept / max(resamples, 1),
        importance=_importance(mean, kept, graph),
        n_edges=int(kept.sum()),
        importance_draws=importance,
        half_changes=np.array(changes, np.int64),
        half_agreement=float(np.mean(overlaps)) if overlaps else float("nan"),
    )
