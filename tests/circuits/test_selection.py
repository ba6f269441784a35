"""Ranking and picking of edges, the benchmark's JSON, and the drawing."""

import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.tiny_models import random_pairs, tiny_model

from headwatch import Anatomy, Circuit, EdgeScores, UserError, score_edges
from headwatch.circuits.drawing import circuit_svg
from headwatch.circuits.graph_json import graph_json
from headwatch.circuits.selection import (
    _greedy,
    edge_strength,
    graph_of,
    random_edges,
    select_circuit,
    select_edges,
    sign_stability,
)


@pytest.fixture(scope="module")
def edges() -> EdgeScores:
    return score_edges(tiny_model("qwen2"), random_pairs(6), steps=1)


def test_rankings(edges: EdgeScores) -> None:
    per_pair = edges.per_pair.numpy()
    mean = per_pair.mean(0)
    assert np.allclose(edge_strength(edges, "mean_abs"), np.abs(per_pair).mean(0))
    assert np.allclose(edge_strength(edges, "abs_mean"), np.abs(mean))
    readings = edges.heads.readings
    gap = (readings.metric_corrupted - readings.metric_clean).mean().item()
    assert np.allclose(edge_strength(edges, "mean"), mean * np.sign(gap))
    stable = edge_strength(edges, "stable")
    always = (np.sign(per_pair) == np.sign(mean)).all(0) & edges.is_real.numpy()
    assert np.allclose(stable[always], np.abs(mean)[always])  # no resample can change such a sign
    assert 0 < (stable > 0).sum() < edges.is_real.sum()
    with pytest.raises(UserError, match="by='best' is unknown"):
        edge_strength(edges, "best")


def test_sign_stability_by_hand(edges: EdgeScores) -> None:
    """Against all resamples of three pairs, which a bootstrap draws from."""
    three = EdgeScores(edges.per_pair[:3], edges.sources, edges.targets, edges.is_real, edges.heads)
    per_pair = three.per_pair.numpy()
    sign = np.sign(per_pair.mean(0))
    draws = [per_pair[list(rows)].mean(0) for rows in itertools.product(range(3), repeat=3)]
    expected = np.mean([np.sign(draw) == sign for draw in draws], axis=0)
    found = sign_stability(three, resamples=4000)
    real = edges.is_real.numpy()
    assert np.abs(found - expected)[real].max() < 0.04
    assert found[~real].max() == 0


def test_greedy_grows_back_from_the_logits(edges: EdgeScores) -> None:
    """Against a direct implementation: at each step the strongest edge into a node of the circuit."""
    graph, strength = graph_of(edges), edge_strength(edges, "abs_mean")
    nodes = graph.target_nodes()
    inside, picked = {len(graph.sources)}, set()
    for _ in range(40):
        choices = [
            (strength[s, r], s, r)
            for s, r in np.argwhere(graph.is_real)
            if nodes[r] in inside and (s, r) not in picked and strength[s, r] > 0
        ]
        _, source, target = max(choices)
        picked.add((source, target))
        inside.add(source)
    assert set(map(tuple, np.argwhere(_greedy(strength, graph, 40)))) == picked


def test_ratio_takes_part_of_the_edges_by_signed_score(edges: EdgeScores) -> None:
    graph, strength, signed = graph_of(edges), edge_strength(edges, "abs_mean"), edge_strength(edges, "mean")
    kept = select_edges(strength, graph, 60, "ratio", signed, ratio=0.5)
    by_sign = np.argsort(-np.where(graph.is_real, signed, -np.inf), axis=None)[:30]
    rest = np.where(graph.is_real, strength, -np.inf).ravel()
    rest[by_sign] = -np.inf
    expected = {*by_sign.tolist(), *np.argsort(-rest)[:30].tolist()}
    assert set(np.flatnonzero(kept)) <= expected  # pruning may drop some
    with pytest.raises(UserError, match="needs the signed scores"):
        select_edges(strength, graph, 60, "ratio")
    with pytest.raises(UserError, match="method='all' is unknown"):
        select_edges(strength, graph, 60, "all")


def test_random_circuits_are_connected_and_depend_on_the_seed(edges: EdgeScores) -> None:
    graph = graph_of(edges)
    one, other = random_edges(graph, 50, 0), random_edges(graph, 50, 1)
    assert one.sum() == other.sum() == 50
    assert (one != other).any()
    assert np.array_equal(one, random_edges(graph, 50, 0))
    assert not (one & ~graph.is_real).any()
    nodes = graph.target_nodes()
    sources = set(np.argwhere(one)[:, 0])
    assert {nodes[r] for r in np.argwhere(one)[:, 1]} <= sources | {len(graph.sources)}


def test_top_is_the_papers_rule(edges: EdgeScores) -> None:
    assert select_circuit(edges, 100).edges == Circuit.select(edges, top_n=100).edges


def test_json_of_the_benchmark(edges: EdgeScores) -> None:
    graph, circuit = graph_of(edges), Circuit.select(edges, top_n=60)
    kept = circuit.kept(graph.sources, graph.targets)
    found = graph_json(edges.mean().numpy(), kept, graph, 24)
    assert found["cfg"] == {"n_layers": 3, "n_heads": 6, "parallel_attn_mlp": False, "d_model": 24}
    assert list(found["nodes"]) == [*graph.sources, "logits"]
    assert len(found["edges"]) == int(edges.is_real.sum())
    assert {name for name, edge in found["edges"].items() if edge["in_graph"]} == {
        f"{s}->{r}" if r[0] != "a" else f"{s}->{r[:-2]}<{r[-1]}>" for s, r in circuit.edges
    }
    s, r = graph.sources.index("a0.h4"), graph.targets.index("m2")
    assert found["edges"]["a0.h4->m2"]["score"] == pytest.approx(float(edges.mean()[s, r]))
    assert "input->a0.h0<q>" in found["edges"]


@pytest.mark.parametrize("top_n", [3, 60, 400])
def test_the_drawing_holds_every_edge_and_node(edges: EdgeScores, top_n: int) -> None:
    circuit = Circuit.select(edges, top_n=top_n)
    root = ElementTree.fromstring(circuit_svg(circuit, "a <title>", max_edges=150))
    space = "{http://www.w3.org/2000/svg}"
    drawn = [path for path in root.iter(f"{space}path") if path.find(f"{space}title") is not None]
    assert len(drawn) == min(150, len(circuit.edges))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    boxes = [(float(r.get("x", 0)), float(r.get("y", 0))) for r in root.iter(f"{space}rect") if r.get("rx")]
    assert len(set(boxes)) == len(boxes)  # no node covers another
    assert all(0 < x < width and 0 < y < height for x, y in boxes)
    text = " ".join(root.itertext())
    assert (f"the strongest of {len(circuit.edges):,}" in text) == (len(circuit.edges) > 150)


def test_kept_edges_name_what_is_missing(edges: EdgeScores) -> None:
    anatomy = Anatomy.of(tiny_model("gpt2"))
    with pytest.raises(UserError, match="does not exist in this model"):
        Circuit.select(edges, top_n=400).kept(anatomy.sources, anatomy.targets)
    graph = graph_of(edges)
    whole = Circuit.of_kept(edges.mean_abs().numpy(), graph.is_real, graph, 1, None)
    assert np.array_equal(whole.kept(graph.sources, graph.targets), graph.is_real)
