"""Groups of heads: of a recorded run, of a circuit, and random ones matched in layer and size."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import write_synthetic_run

from headwatch import Circuit, HeadHistory
from headwatch.errors import UserError
from headwatch.evaluation.head_groups import WHICH, heads_of_circuit, heads_of_run, matched_sets


def test_random_sets_match_layers_and_size_and_avoid_the_heads() -> None:
    heads = [(1, 0), (1, 3), (2, 5), (7, 1)]
    sets = matched_sets(heads, (8, 8), 20, seed=3)
    assert sets == matched_sets(heads, (8, 8), 20, seed=3)
    assert len({tuple(drawn) for drawn in sets}) == 20
    for drawn in sets:
        assert Counter(layer for layer, _ in drawn) == Counter(layer for layer, _ in heads)
        assert len(set(drawn)) == len(heads)
        assert not set(drawn) & set(heads)
    assert {head for drawn in sets for head in drawn} > {(1, 1), (7, 0)}


def test_a_full_layer_is_completed_from_the_nearest_ones() -> None:
    heads = [(2, 0), (2, 1), (2, 2)]  # one other head in this layer
    for drawn in matched_sets(heads, (6, 4), 5):
        assert Counter(layer for layer, _ in drawn)[2] == 1
        assert {layer for layer, _ in drawn} <= {1, 2}  # the layer before is as near as the one after
    with pytest.raises(UserError, match="too many to match"):
        matched_sets([(0, h) for h in range(3)], (1, 4), 1)


def test_groups_of_a_run_are_the_states_of_its_last_probe(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", kind="grpo")
    history = HeadHistory.from_run(run)
    for which, states in WHICH.items():
        expected = {tuple(map(int, at)) for at in np.argwhere(np.isin(history.state[-1], [int(s) for s in states]))}
        if not expected:
            with pytest.raises(UserError, match="no such head at step"):
                heads_of_run(tmp_path / "run", which)
            continue
        found = heads_of_run(tmp_path / "run", which)
        assert set(found) == expected
        if which == "active":
            sizes = [history.importance[-1][head] for head in found]
            assert sizes == sorted(sizes, reverse=True)
            assert heads_of_run(tmp_path / "run", which, top=2) == found[:2]


def test_heads_of_a_circuit_file(tmp_path: Path) -> None:
    importance = np.array([[0.1, 0.0], [0.3, 0.6]])
    edges = (("a0.h0", "logits"), ("a1.h0", "logits"), ("a1.h1", "m1"), ("m1", "logits"))
    Circuit(edges, (1.0, 1.0, 1.0, 1.0), importance, top_n=4, tau=None).to_json(tmp_path / "circuit.json")
    assert heads_of_circuit(tmp_path / "circuit.json") == [(1, 1), (1, 0), (0, 0)]
