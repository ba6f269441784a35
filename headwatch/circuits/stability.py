"""The circuit rule, and its stability over resamples and halves of the pairs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.circuits.circuit import TOP_N, Bools, Floats, Graph, head_importance, heads_with_edges, kept_edges
from headwatch.stats import NullBand, pair_weights
from headwatch.stats.importance import quantile_of


@dataclass(frozen=True)
class CircuitHeads:
    """The heads of the circuit, and how much they depend on the sample of pairs.

    Attributes:
        active: [L, H], whether the head is in the circuit.
        stability: [L, H], share of bootstrap resamples of the pairs whose circuit keeps the head.
        importance: [L, H], the paper's I(l, h).
        n_edges: edges left after pruning.
        importance_draws: float32 [resamples, L, H], I(l, h) of every resample. The same seed gives the same resamples
            of N pairs at every probe, so draw i of two probes is paired: their difference or effect is a paired
            bootstrap.
        half_changes: [splits], heads whose membership differs between two disjoint halves of the pairs: the null band
            of a count of membership changes.
        half_agreement: Jaccard similarity of the two halves' heads, mean over the splits; NaN without splits.
    """

    active: Bools
    stability: Floats
    importance: Floats
    n_edges: int
    importance_draws: NDArray[np.float32]
    half_changes: NDArray[np.int64]
    half_agreement: float = float("nan")

    @property
    def importance_low(self) -> Floats:
        """2.5 % quantile of I(l, h) over the resamples, [L, H]; NaN without resamples."""
        return quantile_of(self.importance_draws, 0.025)

    @property
    def importance_high(self) -> Floats:
        """97.5 % quantile of I(l, h) over the resamples, [L, H]; NaN without resamples."""
        return quantile_of(self.importance_draws, 0.975)

    def scalars(self) -> dict[str, float]:
        """Scalars to log with the circuit rule's head counts."""
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
    """Apply the circuit rule to all pairs, to bootstrap resamples of them and to random halves.

    Args:
        strength: |edge score| of every pair, [N, S, R].
        graph: its rows and columns.
        top_n, tau: see `CircuitSettings`.
        resamples: number of bootstrap resamples of the pairs.
        seed: seed of the resamples and splits; the global random state is not used.
        splits: number of random splits of the pairs into two halves; none with fewer than 4 pairs.
    """
    per_pair = np.asarray(strength, np.float32)
    n = len(per_pair)
    mean = per_pair.mean(0, dtype=np.float64)
    kept = kept_edges(mean, graph, top_n, tau)
    rng = np.random.default_rng(seed)
    weights = pair_weights(n, resamples, rng).astype(np.float32) / n
    real = np.flatnonzero(graph.is_real)
    flat = per_pair.reshape(n, -1)[:, real]

    def circuit_of(weight: NDArray[np.float32]) -> tuple[Bools, Floats]:
        """Heads and importance of the circuit of the weighted mean over pairs, both [L, H]; weight: [N]."""
        weighted = np.zeros(graph.is_real.size)
        weighted[real] = weight @ flat
        matrix = weighted.reshape(graph.is_real.shape)
        keeps = kept_edges(matrix, graph, top_n, tau)
        return heads_with_edges(keeps, graph), head_importance(matrix, keeps, graph)

    times_kept, importance = np.zeros(graph.shape), np.zeros((resamples, *graph.shape), np.float32)
    for index, weight in enumerate(weights):  # one by one: a large model's would not all fit in memory during training
        active, importance[index] = circuit_of(weight)
        times_kept += active
    changes, overlaps = [], []
    for _ in range(splits if n >= 4 else 0):
        half = np.zeros(n, np.float32)
        half[rng.permutation(n)[: n // 2]] = 1.0
        one, other = (circuit_of(part / part.sum())[0] for part in (half, 1.0 - half))
        changes.append(int((one ^ other).sum()))
        overlaps.append(float((one & other).sum() / max((one | other).sum(), 1)))
    return CircuitHeads(
        active=heads_with_edges(kept, graph),
        stability=times_kept / max(resamples, 1),
        importance=head_importance(mean, kept, graph),
        n_edges=int(kept.sum()),
        importance_draws=importance,
        half_changes=np.array(changes, np.int64),
        half_agreement=float(np.mean(overlaps)) if overlaps else float("nan"),
    )
