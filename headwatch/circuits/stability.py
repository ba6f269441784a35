"""The circuit rule, and its stability over resamples and halves of the pairs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from headwatch.circuits.circuit import TOP_N, Bools, Floats, Graph, head_importance, heads_with_edges, kept_edges
from headwatch.circuits.resamples import KeptEdges, circuits_of_kept, kept_of_means
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
        importance_draws: float32 [resamples, L, H], I(l, h) of every resample, rounded to half precision (by at most
            2^-11 of it or 2^-25), as records keep it. The same seed gives the same resamples of N pairs at every
            probe, so draw i of two probes is paired: their difference or effect is a paired bootstrap.
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
    edges: ArrayLike | Tensor,
    graph: Graph,
    top_n: float = TOP_N,
    tau: float | None = None,
    resamples: int = 50,
    seed: int = 0,
    splits: int = 10,
) -> CircuitHeads:
    """Apply the circuit rule to all pairs, to bootstrap resamples of them and to random halves.

    Args:
        edges: edge scores of every pair, signed or not, [N, S, R].
        graph: its rows and columns.
        top_n, tau: see `CircuitSettings`.
        resamples: number of bootstrap resamples of the pairs.
        seed: seed of the resamples and splits; the global random state is not used.
        splits: number of random splits of the pairs into two halves; none with fewer than 4 pairs.
    """
    statistics = edge_statistics(real_edges(edges, graph), top_n, tau, resamples, seed, splits)
    return circuits_of_statistics(statistics, graph, top_n, tau)


def real_edges(edges: ArrayLike | Tensor, graph: Graph) -> Tensor:
    """|edge score| of the edges that exist, float32 [N, E], on the device of `edges`."""
    scores = edges if isinstance(edges, Tensor) else torch.from_numpy(np.asarray(edges, np.float32))
    real, flat = np.flatnonzero(graph.is_real), scores.detach().flatten(1)
    if flat.device.type == "cpu" and flat.dtype == torch.float32:  # torch's selection takes about twice as long
        taken = flat.numpy().take(real, axis=1)
        return torch.from_numpy(np.abs(taken, out=taken))
    return flat.index_select(1, torch.from_numpy(real).to(flat.device)).float().abs_()


@dataclass(frozen=True)
class EdgeStatistics:
    """What the circuit rule needs of the pairs' edges; a part of a hundredth of them, on the host.

    Attributes:
        mean: mean |edge score| over the pairs, float64 [E].
        kept: the edges that the rule keeps of the resamples, then of the two halves of each split.
        resamples: number of resamples.
    """

    mean: Floats
    kept: tuple[KeptEdges, ...]
    resamples: int


def edge_statistics(
    strength: Tensor,
    top_n: float = TOP_N,
    tau: float | None = None,
    resamples: int = 50,
    seed: int = 0,
    splits: int = 10,
) -> EdgeStatistics:
    """The first part of `circuit_heads`, on the device of the edges.

    Args:
        strength: |edge score| of the real edges of every pair, float32 [N, E] (`real_edges`).
        top_n, tau, resamples, seed, splits: see `circuit_heads`.
    """
    n, rng = len(strength), np.random.default_rng(seed)
    weights = [pair_weights(n, resamples, rng).astype(np.float32) / n]
    for _ in range(splits if n >= 4 else 0):
        half = np.zeros(n, np.float32)
        half[rng.permutation(n)[: n // 2]] = 1.0
        weights.append(np.stack([part / part.sum() for part in (half, 1.0 - half)]))
    kept = kept_of_means(strength, np.concatenate(weights), top_n, tau)
    return EdgeStatistics(mean_over_pairs(strength), tuple(kept), resamples)


def circuits_of_statistics(
    statistics: EdgeStatistics, graph: Graph, top_n: float = TOP_N, tau: float | None = None
) -> CircuitHeads:
    """The second part of `circuit_heads`, on the host."""
    mean, resamples = whole_matrix(statistics.mean, graph), statistics.resamples
    kept = kept_edges(mean, graph, top_n, tau)
    active, importance = circuits_of_kept(statistics.kept, graph)
    one, other = active[resamples::2], active[resamples + 1 :: 2]
    overlaps = (one & other).sum((1, 2)) / np.maximum((one | other).sum((1, 2)), 1)
    return CircuitHeads(
        active=heads_with_edges(kept, graph),
        stability=active[:resamples].sum(0) / max(resamples, 1),
        importance=head_importance(mean, kept, graph),
        n_edges=int(kept.sum()),
        importance_draws=importance[:resamples].astype(np.float16).astype(np.float32),
        half_changes=(one ^ other).sum((1, 2)).astype(np.int64),
        half_agreement=float(np.mean(overlaps)) if len(overlaps) else float("nan"),
    )


def mean_over_pairs(strength: Tensor) -> Floats:
    """Mean of [N, E] over the pairs, [E]."""
    if strength.device.type == "cpu":
        return strength.numpy().mean(0, dtype=np.float64)  # torch's takes several times as long
    return strength.mean(0, dtype=torch.float64).cpu().numpy()


def whole_matrix(values: NDArray[np.floating], graph: Graph) -> Floats:
    """Values of the real edges [E] as a matrix [S, R], zero elsewhere."""
    matrix = np.zeros(graph.is_real.shape)
    matrix[graph.is_real] = values
    return matrix
