"""A small graph and random edge strengths, for tests of the circuit rule."""

import numpy as np

from headwatch.circuits.circuit import Graph


def tiny_graph(layers: int = 2, heads: int = 2) -> Graph:
    sources, targets, real = ["input"], [], []
    for layer in range(layers):
        before = len(sources)
        targets += [f"a{layer}.h{head}.{kind}" for head in range(heads) for kind in "qkv"]
        real += [before] * (3 * heads)
        sources += [f"a{layer}.h{head}" for head in range(heads)]
        targets.append(f"m{layer}")
        real.append(len(sources))
        sources.append(f"m{layer}")
    targets.append("logits")
    real.append(len(sources))
    is_real = np.arange(len(sources))[:, None] < np.array(real)[None, :]
    return Graph(tuple(sources), tuple(targets), is_real)


def random_strength(graph: Graph, n_pairs: int, seed: int = 0) -> np.ndarray:
    """|edge score| of every pair, [N, S, R]; zero for edges that do not exist."""
    return np.random.default_rng(seed).gamma(0.7, 1.0, (n_pairs, *graph.is_real.shape)) * graph.is_real
