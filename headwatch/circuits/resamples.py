"""The circuit rule on many weighted means of the same pairs: one product and one sweep for all of them.

The product and the selection run where the pairs' edges are; only the few edges that are kept come to the host, which
prunes them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwatch.attribution.transfers import on_device
from headwatch.circuits.circuit import Bools, Graph, n_kept, validate_rule
from headwatch.model.precision import without_tf32

SAMPLED = 16  # every so many edges are looked at first, to find a lower bound of the n-th largest
# Weighted means at once: the resamples of a large model do not all fit in memory during training. On a CPU, arrays of
# this size are served from freed memory, larger ones are new pages each time.
MAX_BYTES, MAX_BYTES_ON_CPU = 2**27, 24 * 2**20


@dataclass(frozen=True)
class KeptEdges:
    """The edges that the rule keeps of K weighted means, before pruning, on the host.

    Attributes:
        n_samples: K.
        samples, edges: int64, the mean and the real edge of every kept one.
        scores: float64, its value in this mean.
    """

    n_samples: int
    samples: NDArray[np.int64]
    edges: NDArray[np.int64]
    scores: NDArray[np.float64]


def kept_of_means(
    strength: Tensor, weights: NDArray[np.float32], top_n: float, tau: float | None
) -> Iterator[KeptEdges]:
    """The edges that the rule keeps of every weighted mean over pairs, as many means at once as fit in memory.

    Args:
        strength: |edge score| of the real edges of every pair, float32 [N, E]; the product and the selection run on its
            device.
        weights: [K, N].
        top_n, tau: see `CircuitSettings`.
    """
    validate_rule(top_n, tau)
    most = MAX_BYTES_ON_CPU if strength.device.type == "cpu" else MAX_BYTES
    at_once = max(1, most // (4 * strength.shape[1]))
    for first in range(0, len(weights), at_once):
        part = on_device(torch.from_numpy(weights[first : first + at_once]), strength.device)
        with without_tf32():
            means = part @ strength
        yield KeptEdges(len(part), *strongest_of_each(means, n_kept(top_n, strength.shape[1]), tau))


def circuits_of_kept(parts: Iterable[KeptEdges], graph: Graph) -> tuple[Bools, NDArray[np.float32]]:
    """Heads and importance of the circuit of every weighted mean, after pruning.

    Args:
        parts: of `kept_of_means`.
        graph: sources, targets and real edges.

    Returns:
        Heads bool [K, L, H], and I(l, h) float32 [K, L, H].
    """
    found = [_circuits(part, graph) for part in parts]
    layers, heads = graph.shape
    if not found:
        return np.zeros((0, layers, heads), np.bool_), np.zeros((0, layers, heads), np.float32)
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


def _circuits(kept: KeptEdges, graph: Graph) -> tuple[Bools, NDArray[np.float32]]:
    """`circuits_of_kept` of a number of means that fits in memory."""
    samples, edges, scores = kept.samples, kept.edges, kept.scores
    n_samples, n_sources = kept.n_samples, len(graph.sources)
    sources, targets = (places[edges] for places in np.nonzero(graph.is_real))
    nodes = graph.target_nodes()[targets]
    between = np.zeros((n_sources, n_samples, n_sources + 1), np.bool_)  # node to node, of every sample
    between[sources, samples, nodes] = True
    connected = _connected(between)
    stays = connected[samples, sources] & connected[samples, nodes]
    places = samples[stays] * n_sources + sources[stays]
    size = n_samples * n_sources
    sums = np.bincount(places, weights=scores[stays], minlength=size).astype(np.float64)  # integers if no edge stays
    active = np.bincount(places, minlength=size) > 0
    layers, heads = graph.shape

    def of_heads(rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(n_samples, n_sources)[:, 1:].reshape(n_samples, layers, heads + 1)[..., :heads]

    rows = of_heads(sums)
    total = rows.sum((1, 2), keepdims=True)
    importance = np.divide(rows, total, out=np.zeros_like(rows), where=total > 0)
    return of_heads(active), importance.astype(np.float32)


def strongest_of_each(
    means: Tensor, n: int, tau: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The edges of every sample that the rule keeps: sample, edge and score of each; means: [K, E]."""
    if means.device.type == "cpu":  # torch's selection takes several times as long as numpy's there
        found = [_strongest_of_one(row, n, tau) for row in means.numpy()]
        samples = np.repeat(np.arange(len(found)), [len(edges) for edges, _ in found])
        return samples, np.concatenate([edges for edges, _ in found]), np.concatenate([score for _, score in found])
    return strongest_on_device(means, n, tau)


def strongest_on_device(
    means: Tensor, n: int, tau: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """`strongest_of_each` by torch alone, on any device."""
    best = means.topk(n, dim=1).values
    kept = (means >= _threshold(best[:, -1:], best[:, :1], tau)) & (means > 0)
    chosen = kept.nonzero(as_tuple=True)
    samples, edges, scores = (found.cpu().numpy() for found in (*chosen, means[chosen]))
    return samples, edges, scores.astype(np.float64)


def _strongest_of_one(
    means: NDArray[np.float32], n: int, tau: float | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The edges of one sample that the rule keeps, and their scores; means: [E]."""
    part = means[::SAMPLED]
    rank = min(len(part), 2 * n // SAMPLED + 8)
    above = means[means >= np.partition(part, -rank)[-rank]]  # about 2 n edges; fewer than n only by chance
    above = above if len(above) >= n else means
    least = _threshold(np.partition(above, -n)[-n], above.max(), tau)
    edges = np.flatnonzero((means >= least) & (means > 0))
    return edges, means[edges].astype(np.float64)


def _threshold(least: Any, largest: Any, tau: float | None) -> Any:
    """The smallest score that is kept: the n-th largest, or tau's, if that is larger."""
    if tau is None:
        return least
    bound = tau * largest if tau >= 0 else largest * 0 - tau
    return np.maximum(least, bound) if isinstance(least, np.generic) else torch.maximum(least, bound)


def _connected(between: Bools) -> Bools:
    """Nodes with a path from the input and one to the logits, bool [K, S + 1]; between: [S, K, S + 1]."""
    n_sources, n_samples, _ = between.shape
    from_input = np.zeros((n_samples, n_sources + 1), np.bool_)
    from_input[:, 0] = True
    for node in range(n_sources):  # sources are in the order of computation, so one sweep is enough
        from_input |= between[node] & from_input[:, node, None]
    to_logits = np.zeros_like(from_input)
    to_logits[:, -1] = True
    for node in reversed(range(n_sources)):
        to_logits[:, node] = (between[node] & to_logits).any(1)
    return from_input & to_logits
