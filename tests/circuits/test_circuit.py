"""The circuit rule against a reference that walks every path, and the stability of its heads."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_graph import random_strength, tiny_graph

from headwatch import UserError
from headwatch.circuits.circuit import (
    Circuit,
    CircuitSettings,
    Graph,
    head_importance,
    heads_with_edges,
    kept_edges,
    n_kept,
)
from headwatch.circuits.resamples import circuits_of_kept, kept_of_means, strongest_of_each, strongest_on_device
from headwatch.circuits.stability import circuit_heads, real_edges, whole_matrix


def on_a_path(kept: np.ndarray, graph: Graph) -> np.ndarray:
    """Edges on some path from the input to the logits, found by walking every path."""
    nodes = graph.target_nodes()
    out = np.zeros_like(kept)

    def walk(node: int, path: list[tuple[int, int]]) -> None:
        if node == len(graph.sources):
            for edge in path:
                out[edge] = True
            return
        for target in np.flatnonzero(kept[node]):
            walk(int(nodes[target]), [*path, (node, int(target))])

    walk(0, [])
    return out


def as_matrix(circuit: Circuit, graph: Graph) -> np.ndarray:
    out = np.zeros(graph.is_real.shape, bool)
    for source, target in circuit.edges:
        out[graph.sources.index(source), graph.targets.index(target)] = True
    return out


@pytest.mark.parametrize("seed", range(6))
def test_pruning_keeps_edges_on_a_path(seed: int) -> None:
    graph, n = tiny_graph(), 9
    strength = random_strength(graph, 1, seed)[0]
    strongest = np.argsort(np.where(graph.is_real, -strength, 0), axis=None, kind="stable")[:n]
    kept = np.zeros(graph.is_real.size, bool)
    kept[strongest] = True
    expected = on_a_path(kept.reshape(graph.is_real.shape), graph)
    circuit = Circuit.of_matrix(strength, graph, top_n=n)
    assert np.array_equal(as_matrix(circuit, graph), expected)
    assert list(circuit.scores) == sorted(circuit.scores, reverse=True)


def test_top_n_as_a_share_and_tau() -> None:
    graph = tiny_graph()
    strength = random_strength(graph, 1)[0]
    n_real = int(graph.is_real.sum())
    whole = Circuit.of_matrix(strength, graph, top_n=n_real)
    assert len(whole.edges) == n_real
    assert (
        Circuit.of_matrix(strength, graph, top_n=0.5).edges
        == Circuit.of_matrix(strength, graph, top_n=round(0.5 * n_real)).edges
    )
    for tau in (0.3, -0.4):
        threshold = tau * strength[graph.is_real].max() if tau > 0 else -tau
        cut = Circuit.of_matrix(strength, graph, top_n=n_real, tau=tau)
        assert cut.edges
        assert min(cut.scores) >= threshold
        assert len(cut.edges) < n_real


def test_heads_and_importance() -> None:
    graph = tiny_graph()
    strength = np.zeros(graph.is_real.shape)
    for source, target, value in [
        ("input", "a0.h1.v", 3.0),
        ("a0.h1", "m1", 2.0),
        ("a0.h1", "logits", 1.0),
        ("m1", "logits", 4.0),
        ("a1.h0", "logits", 1.0),  # not reachable from the input
        ("input", "a1.h1.q", 1.0),  # no path to the logits
    ]:
        strength[graph.sources.index(source), graph.targets.index(target)] = value
    circuit = Circuit.of_matrix(strength, graph, top_n=6)
    assert circuit.heads == {(0, 1)}
    assert len(circuit.edges) == 4
    assert circuit.importance[0, 1] == 1.0
    assert circuit.importance.sum() == 1.0


def test_json_round_trip(tmp_path) -> None:
    graph = tiny_graph()
    circuit = Circuit.of_matrix(random_strength(graph, 1)[0], graph, top_n=0.3, tau=0.05)
    circuit.to_json(tmp_path / "circuit.json")
    again = Circuit.from_json(tmp_path / "circuit.json")
    assert again.edges == circuit.edges
    assert again.heads == circuit.heads
    assert np.array_equal(again.importance, circuit.importance)
    (tmp_path / "bad.json").write_text(json.dumps({"edges": []}))
    for name in ("bad.json", "missing.json"):
        with pytest.raises(UserError, match=r"to_json"):
            Circuit.from_json(tmp_path / name)


def test_stability_is_the_share_of_resamples_that_keep_a_head() -> None:
    graph = tiny_graph()
    strength = random_strength(graph, 20)
    same = circuit_heads(np.repeat(strength[:1], 20, 0), graph, top_n=0.2)
    assert np.array_equal(same.stability, same.active.astype(float))  # equal pairs: every resample is the same
    found = circuit_heads(strength, graph, top_n=0.2, seed=3)
    by_hand = np.zeros(graph.shape)
    draws = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), size=50)
    for draw in draws:
        resample = np.repeat(strength, draw, axis=0).mean(0)
        for head in Circuit.of_matrix(resample, graph, top_n=0.2).heads:
            by_hand[head] += 1 / 50
    assert np.allclose(found.stability, by_hand)
    assert ((found.stability > 0) & (found.stability < 1)).any()


@pytest.mark.parametrize(
    "rule",
    [*({"top_n": n} for n in (0, -3, 1.5, float("nan"), True, "5")), *({"tau": t} for t in (1.0, "0.1"))],
    ids=str,
)
def test_bad_rules_are_refused(rule: dict[str, Any]) -> None:
    graph = tiny_graph()
    strength = random_strength(graph, 1)[0]
    with pytest.raises(UserError, match=next(iter(rule))):
        Circuit.of_matrix(strength, graph, **rule)
    with pytest.raises(UserError, match=next(iter(rule))):
        CircuitSettings(**rule)


def test_resamples_and_halves_equal_the_rule_applied_one_by_one() -> None:
    """The interval of I(l, h) and the null band."""
    graph = tiny_graph(layers=3)
    strength = random_strength(graph, 9, seed=11)
    found = circuit_heads(strength, graph, top_n=12, resamples=20, seed=3, splits=4)
    rng = np.random.default_rng(3)
    weights = rng.multinomial(9, np.full(9, 1 / 9), size=20)
    importance = [Circuit.of_matrix(np.tensordot(w, strength, 1) / 9, graph, top_n=12).importance for w in weights]
    low, high = np.quantile(importance, (0.025, 0.975), axis=0)
    np.testing.assert_allclose(found.importance_low, low, rtol=2**-11, atol=1e-7)
    np.testing.assert_allclose(found.importance_high, high, rtol=2**-11)  # the draws are in half precision
    changes, overlaps = [], []
    for _ in range(4):
        order = rng.permutation(9)
        one, other = (
            Circuit.of_matrix(strength[rows].mean(axis=0), graph, top_n=12).heads for rows in (order[:4], order[4:])
        )
        changes.append(len(one ^ other))
        overlaps.append(len(one & other) / max(len(one | other), 1))
    assert found.half_changes.tolist() == changes
    assert found.half_agreement == pytest.approx(np.mean(overlaps))
    assert found.scalars()["membership_changes_by_chance"] == np.median(changes)
    alone = circuit_heads(strength[:3], graph, top_n=12, resamples=0)
    assert len(alone.half_changes) == 0
    assert np.isnan(alone.half_agreement)


def test_resamples_without_any_connected_edge() -> None:
    """One edge per resample is on no path from the input to the logits: no head is active, and nothing fails."""
    graph = tiny_graph()
    strength = random_strength(graph, 4)
    found = circuit_heads(strength, graph, top_n=1, resamples=6)
    assert not found.importance_draws.any()
    assert not found.stability.any()


def test_resamples_follow_the_rule_one_by_one() -> None:
    """Every resample's heads and importance are those of the rule on its weighted mean, also with ties and no edges."""
    graph = tiny_graph(layers=4, heads=3)
    rng = np.random.default_rng(7)
    weights = rng.dirichlet(np.ones(6), size=5).astype(np.float32)
    smooth = rng.random((6, *graph.is_real.shape)) ** 4
    cases = [smooth, np.round(3 * smooth), np.zeros_like(smooth)]
    for strength, (top_n, tau) in itertools.product(cases, [(0.2, None), (12, 0.4), (0.5, -0.05), (1, None)]):
        edges = real_edges(strength, graph)
        active, importance = circuits_of_kept(kept_of_means(edges, weights, top_n, tau), graph)
        means = (torch.from_numpy(weights) @ edges).numpy()
        for row, heads, sizes in zip(means, active, importance, strict=True):
            mean = whole_matrix(row, graph)
            kept = kept_edges(mean, graph, top_n, tau)
            assert (heads == heads_with_edges(kept, graph)).all()
            np.testing.assert_allclose(sizes, head_importance(mean, kept, graph), atol=1e-6)
        n = n_kept(top_n, edges.shape[1])  # the selection of a GPU is the one of a CPU
        for own, other in zip(
            strongest_on_device(torch.from_numpy(means), n, tau),
            strongest_of_each(torch.from_numpy(means), n, tau),
            strict=True,
        ):
            assert (own == other).all()
