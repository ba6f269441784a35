"""Selection of circuits of any size: how edges are ranked (`edge_strength`) and how they are picked (`select_edges`).

Ranking: "mean_abs", mean |score| over the pairs (the paper); "abs_mean", |mean score| (EAP-IG); "mean", the mean score
in the direction of the metric gap, so edges that counteract the task come last; "stable", |mean score| where 95 % of
bootstrap resamples of the pairs have the sign of the mean, and nothing elsewhere.

Picking: "top", the n strongest edges; "greedy", from the logits back: repeatedly the strongest edge into a node that is
already in the circuit (Hanna et al. 2024), so every edge has a path to the logits; "ratio", a part of the n by the mean
score in the direction of the gap and the others by |mean score| (BlackboxNLP 2025 shared task).
"""

import heapq
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headwatch.circuits.circuit import Bools, Circuit, Floats, Graph, pruned
from headwatch.errors import UserError
from headwatch.stats import pair_weights

if TYPE_CHECKING:
    from headwatch.attribution.scores import EdgeScores

RANKINGS = ("mean_abs", "abs_mean", "mean", "stable")
METHODS = ("top", "greedy", "ratio")
STABLE = 0.95  # of the resamples must have the sign of the mean
RATIO = 0.5  # of the edges that "ratio" picks by signed score


def graph_of(edges: "EdgeScores") -> Graph:
    """Names of the rows and columns of edge scores, and which edges exist."""
    return Graph(edges.sources, edges.targets, edges.is_real.numpy())


def edge_strength(edges: "EdgeScores", by: str = "mean_abs", resamples: int = 200, seed: int = 0) -> Floats:
    """How strong each edge is, [S, R]; what is not positive is never picked.

    Args:
        edges: scored edges.
        by: "mean_abs", "abs_mean", "mean" or "stable", see the top of this file.
        resamples: bootstrap resamples of the pairs, for "stable".
        seed: seed of the resamples.

    Raises:
        UserError: an unknown ranking.
    """
    if by not in RANKINGS:
        raise UserError(f"by={by!r} is unknown; use one of {', '.join(RANKINGS)}")
    if by == "mean_abs":
        return edges.mean_abs().numpy().astype(np.float64)
    mean = edges.mean().numpy().astype(np.float64)
    if by == "mean":
        readings = edges.heads.readings
        return mean * np.sign(float((readings.metric_corrupted - readings.metric_clean).mean()))
    if by == "stable":
        return np.where(sign_stability(edges, resamples, seed) >= STABLE, np.abs(mean), 0.0)
    return np.abs(mean)


def sign_stability(edges: "EdgeScores", resamples: int = 200, seed: int = 0) -> Floats:
    """Share of bootstrap resamples of the pairs in which an edge's mean score has the sign of its mean, [S, R]."""
    per_pair = edges.per_pair.numpy()
    real = np.flatnonzero(edges.is_real.numpy())
    flat = per_pair.reshape(len(per_pair), -1)[:, real]
    sign = np.sign(flat.mean(axis=0))
    agree = np.zeros(len(real))
    for weight in pair_weights(len(flat), resamples, np.random.default_rng(seed)):
        agree += np.sign(weight.astype(flat.dtype) @ flat) == sign
    found = np.zeros(edges.is_real.numel())
    found[real] = agree / max(resamples, 1)
    return found.reshape(edges.is_real.shape)


def select_edges(
    strength: Floats, graph: Graph, n: int, method: str = "top", signed: Floats | None = None, ratio: float = RATIO
) -> Bools:
    """Pick n edges and prune nodes that are not on a path from the input to the logits, bool [S, R].

    Args:
        strength: of every edge, [S, R].
        graph: its rows and columns.
        n: edges before pruning; fewer where fewer are positive.
        method: "top", "greedy" or "ratio".
        signed: the ranking "mean", which "ratio" needs.
        ratio: the part that "ratio" picks by `signed`.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"method={method!r} is unknown; use one of {', '.join(METHODS)}")
    if method == "greedy":
        return pruned(_greedy(strength, graph, n), graph)
    if method == "top":
        return pruned(_strongest(strength, graph.is_real, n), graph)
    if signed is None:
        raise UserError("method='ratio' needs the signed scores: edge_strength(edges, 'mean')")
    first = _strongest(signed, graph.is_real, round(ratio * n))
    rest = _strongest(strength, graph.is_real & ~first, n - int(first.sum()))
    return pruned(first | rest, graph)


def select_circuit(
    edges: "EdgeScores", n: int, by: str = "mean_abs", method: str = "top", ratio: float = RATIO
) -> Circuit:
    """The circuit of n edges; see `edge_strength` and `select_edges`."""
    graph, strength = graph_of(edges), edge_strength(edges, by)
    signed = edge_strength(edges, "mean") if method == "ratio" else None
    kept = select_edges(strength, graph, n, method, signed, ratio)
    return Circuit.of_kept(edges.mean_abs().numpy().astype(np.float64), kept, graph, n, None)


def random_edges(graph: Graph, n: int, seed: int) -> Bools:
    """n random edges, each with a path to the logits (greedy picking of random strengths); the control of a circuit."""
    random = np.random.default_rng(seed).random(graph.is_real.shape)
    return _greedy(np.where(graph.is_real, random, 0.0), graph, n)


def _strongest(strength: Floats, allowed: Bools, n: int) -> Bools:
    """The n strongest allowed edges with a positive strength; ties go to the earlier edge."""
    flat = np.where(allowed, strength, -np.inf).ravel()
    chosen = np.argsort(-flat, kind="stable")[: max(n, 0)]
    kept = np.zeros(flat.shape, np.bool_)
    kept[chosen] = flat[chosen] > 0.0
    return kept.reshape(strength.shape)


def _greedy(strength: Floats, graph: Graph, n: int) -> Bools:
    nodes = graph.target_nodes()
    columns: dict[int, NDArray[np.int64]] = {int(node): np.flatnonzero(nodes == node) for node in np.unique(nodes)}
    kept = np.zeros(strength.shape, np.bool_)
    waiting: list[tuple[float, int, int]] = []

    def open_node(node: int) -> None:
        for target in columns.get(node, ()):
            for source in np.flatnonzero(graph.is_real[:, target] & (strength[:, target] > 0.0)):
                heapq.heappush(waiting, (-float(strength[source, target]), int(source), int(target)))

    opened = {len(graph.sources)}  # the logits
    open_node(len(graph.sources))
    left = n
    while waiting and left > 0:
        _, source, target = heapq.heappop(waiting)
        kept[source, target] = True
        left -= 1
        if source not in opened:
            opened.add(source)
            open_node(source)
    return kept
