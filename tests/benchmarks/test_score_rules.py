"""The benchmarks of docs/evidence/scores.md on small inputs: their counts are right."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.benches import bench
from helpers.tiny_models import random_pairs, tiny_model

from headwatch import Anatomy, ProbeSet, score_heads
from headwatch.analysis.interventions import scaled_heads
from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with the demo's tokenizer."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, ModelSize(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_mlp=64))
    return save(model, tokenizer, tmp_path_factory.mktemp("rules") / "base")


# --- heads: scores.py -----------------------------------------------------------------------------------------------


def test_exact_changes_are_runs_with_one_head_replaced() -> None:
    scores = bench("scores")
    model, probes = tiny_model("llama"), random_pairs()
    with torch.no_grad():
        truth, _ = scores.exact(model, probes, ["logit_diff", "kl"])
        pairs = [scores.Runs(model, Anatomy.of(model), probes, pair) for pair in range(len(probes))]
        for metric, by_direction in truth.items():
            for at in ((0, 0), (1, 2)):
                kept = np.ones(by_direction["both"].shape, np.bool_)
                kept[at] = False
                change = [
                    float(runs.value(metric, runs.with_heads(kept)) - runs.value(metric, runs.logits["clean"]))
                    for runs in pairs
                ]
                assert by_direction["noising"][at] == pytest.approx(np.mean(change), abs=1e-9)
            assert by_direction["both"] == pytest.approx((by_direction["noising"] + by_direction["denoising"]) / 2)


def test_rules_are_compared_in_rows() -> None:
    scores = bench("scores")
    model = tiny_model("llama")
    rows = scores.compare(model, random_pairs(n=20), ["kl"], ["ends", "clean", "midpoint, m = 2"])
    assert [row["rule"] for row in rows] == ["ends", "midpoint, m = 2"]  # no clean rule under kl
    assert all(row["pairs"] == 4 for row in rows)
    without = scores.compare(model, random_pairs(n=20), ["kl"], ["ends"], with_circuit=False)[0]
    assert without["circuit"] is None
    assert without["agreement_both"] == rows[0]["agreement_both"]


# --- planted changes: planted_rules.py ------------------------------------------------------------------------------


def test_states_are_measured_once_and_the_weights_put_back(base: Path) -> None:
    planted = bench("planted")
    calls: list[int] = []

    def measure(model: torch.nn.Module, probes: ProbeSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        calls.append(len(probes))
        return planted.by_score(model, probes, alphas="ends")

    states = planted.States(base, 6, 3, measure)
    before = {name: value.clone() for name, value in states.model.state_dict().items()}
    whole = states.measured({(0, 1): 1.0})
    off = states.measured({(0, 1): 0.0})
    assert states.measured({(0, 1): 0.0}) is off
    assert calls == [12, 12]
    assert all(torch.equal(value, before[name]) for name, value in states.model.state_dict().items())
    assert [found[0].shape for found in whole] == [(6, 2, 4), (6, 2, 4)]
    with scaled_heads(states.model, {(0, 1): 0.0}):
        scored = score_heads(states.model, states.probes, alphas="ends").select("carry")
    assert off[1][0] == pytest.approx(scored.per_pair.numpy(), abs=1e-6)
    assert off[1][2] == pytest.approx(scored.readings.metric_corrupted.numpy(), abs=1e-6)


def test_a_plan_is_measured_by_every_rule_and_by_patching(base: Path, tmp_path: Path) -> None:
    planted, rules = bench("planted"), bench("planted_rules")
    how = {"ends": partial(planted.by_score, alphas="ends"), rules.PATCHING: rules.by_patching}
    probes = {name: planted.States(base, 4, 1, measure) for name, measure in how.items()}
    truths = {name: planted.Truth(base, 8, measure) for name, measure in how.items()}
    plants = [planted.Plant((1, 2), "on", {0: 0.0, 5: 1.0})]
    rules.run_plan(plants, probes, truths, tmp_path / "plan-0-0.npz")
    found = np.load(tmp_path / "plan-0-0.npz")
    assert found["plants"].tolist() == [[1, 2]]
    for name in how:
        scores = found[f"{name}/addition/scores"]
        assert scores.shape == (7, 4, 2, 4)
        assert np.array_equal(scores[0], scores[2])  # off until step 5
        assert np.array_equal(scores[3], scores[6])
        rounding = 1e-6  # patching subtracts the metric of two passes
        assert np.abs(scores[:3, :, 1, 2]).max() < rounding
        assert np.abs(scores[3:, :, 1, 2]).max() > 100 * rounding
        assert found[f"{name}/truth"].shape == (2, 7, 2, 4)


def test_a_rule_is_judged_by_patching_and_by_itself(tmp_path: Path) -> None:
    """A head really emerges; one rule sees it, the other sees an untouched head instead."""
    rules = bench("planted_rules")
    right = np.full((7, 1, 30), 0.01)
    right[:, 0, :10] = 0.2
    wrong = right.copy()
    right[:3, 0, 0], right[3:, 0, 0] = 0.0, 0.4  # clearly inside the set, so not at its edge
    wrong[:3, 0, 20], wrong[3:, 0, 20] = 0.0, 0.4
    arrays = {"plants": np.array([[0, 0]])}
    gap = -5.0 * np.exp(0.1 * np.random.default_rng(0).standard_normal(64))
    for name, share in ((rules.PATCHING, right), ("ends", right), ("clean", wrong)):
        arrays[f"{name}/truth"] = np.stack([share, share])
        for family in ("addition", "carry"):
            noise = 1e-4 * np.random.default_rng(1).standard_normal((7, 64, 1, 30))
            arrays[f"{name}/{family}/scores"] = gap[:, None, None] * (share[:, None] + noise)
            arrays[f"{name}/{family}/clean"] = np.zeros((7, 64))
            arrays[f"{name}/{family}/corrupted"] = np.tile(gap, (7, 1))
    np.savez(tmp_path / "plan-0-0.npz", **arrays)
    counts = rules.analyse(tmp_path, [32], rules.EvidenceSettings())
    sets = 2 * 2  # families, halves
    exact, own = (counts["ends"][truth][32] for truth in (rules.PATCHING, rules.OWN))
    assert (exact.planted, exact.found, exact.given, own.found) == (sets, sets, 0, sets)
    misled, by_itself = (counts["clean"][truth][32] for truth in (rules.PATCHING, rules.OWN))
    assert (misled.planted, misled.found, misled.given, misled.false) == (sets, 0, sets, sets)
    assert (by_itself.planted, by_itself.false) == (0, 0)
    assert f"| {rules.PATCHING} | 32 | clean | 4 | 0 (0.0%) |" in rules.table(counts)
    wrong = rules.errors(tmp_path)
    assert wrong["ends"] == {"heads": 20, "wrong": 0, "wrong_first_layer": 0, "median": 0.0, "worst": 0.0}
    # Head 0 has half its share; head 20 has none by patching, so no share to be wrong about.
    assert wrong["clean"] == {
        "heads": 20,
        "wrong": 2,
        "wrong_first_layer": 2,
        "median": 0.0,
        "worst": pytest.approx(0.5),
    }
    assert "| clean | 20 | 2 | 2 | 0.0% | 50% |" in rules.table_of_errors(wrong)


# --- events: event_rules.py -----------------------------------------------------------------------------------------


def measurement(share: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """A measurement of 64 pairs with almost no noise."""
    gap = -5.0 * np.exp(0.1 * np.random.default_rng(0).standard_normal(64))
    noise = 1e-4 * np.random.default_rng(seed).standard_normal((64, *share.shape))
    heads = np.array([(0, 0), (0, 1), (0, 20)])
    return {"effects": gap[:, None, None] * (share + noise), "clean": 0 * gap, "corrupted": gap, "heads": heads}


def test_events_are_compared_with_the_other_half_and_with_patching() -> None:
    rules = bench("event_rules")
    before = np.full((1, 30), 0.01)
    before[0, :10] = 0.2
    after = before.copy()
    after[0, 0] = 0.0  # dropped
    misled = after.copy()
    misled[0, 20] = 0.2  # not so
    of = {(state, rule): measurement(share, seed) for seed, (state, rule, share) in enumerate((
        ("base", rules.PATCHING, before), ("off", rules.PATCHING, after),
        ("base", "ends", before), ("off", "ends", misled),
    ))}  # fmt: skip
    rows = rules.compare(["ends", rules.PATCHING], of, ("base", "off"), splits=3)
    assert rows["ends"]["heads"] == {"L0.H0 dropped": 6, "L0.H20 emerged": 6}
    assert rows["ends"]["all pairs"] == ["L0.H0 dropped", "L0.H20 emerged"]
    assert (rows["ends"]["events"], rows["ends"]["in both"], rows["ends"]["true"]) == (12, 12, 6)
    assert rows["ends"]["supports"] == 6
    assert rows[rules.PATCHING]["heads"] == {"L0.H0 dropped": 6}
    text = rules.table({"base to off": rows})
    assert "| base to off | ends | 2.0 | 100% | 50% |" in text
    assert "| 50% | 100% of 1 |" in text
    agree = rules.agreements(["ends", rules.PATCHING], of, [("base", "off")])
    assert list(agree) == ["base", "off", "base to off"]
    assert agree["off"][rules.PATCHING] == {"agreement": pytest.approx(1.0), "error": 0.0, "large": 1, "wrong": 0}
    assert agree["base"]["ends"]["large"] == 2  # of the three that were patched
    assert agree["base"]["ends"]["error"] < 1e-4
    assert agree["base to off"]["ends"]["error"] == pytest.approx((0.2 - 0.01) / 3, abs=1e-4)  # one of three heads
    assert "| base to off | exact patching | 1.000 | 0.00% | 1 | 0 |" in rules.table_of_agreement(agree)


def test_a_state_with_heads_off_is_measured(base: Path, tmp_path: Path) -> None:
    rules = bench("event_rules")
    probes = ProbeSet.generate("addition", build_tokenizer(), n_pairs=4, seed=0)
    state = rules.State(f"{base}:L0.H1,L1.H3")
    found = rules.measured(tmp_path, "off", state, probes, "ends", [], "logit_diff")
    assert np.abs(found["effects"]).min(axis=0)[[0, 1], [1, 3]].tolist() == [0.0, 0.0]
    exact = rules.measured(tmp_path, "off", state, probes, rules.PATCHING, [(0, 0), (0, 1)], "logit_diff")
    assert exact["effects"].shape == found["effects"].shape
    assert np.abs(exact["effects"][:, 0, 1]).max() < 1e-6  # off
    assert np.abs(exact["effects"][:, 0, 0]).max() > 1e-4
    assert exact["clean"] == pytest.approx(found["clean"], abs=1e-5)
    # Read from the folder.
    again = rules.measured(tmp_path, "off", rules.State("nowhere"), probes, "ends", [], "logit_diff")
    assert np.array_equal(again["effects"], found["effects"])


# --- circuits of edges: circuit_rules.py ----------------------------------------------------------------------------


def test_each_half_of_the_pairs_selects_and_evaluates_once(tmp_path: Path) -> None:
    rules = bench("circuit_rules")
    row = rules.curves(tiny_model("llama"), random_pairs(n=6), "logit_diff", "ends", "mean_abs")
    assert len(row["curves"]) == 2
    for curve in row["curves"]:
        assert curve["curve"][-1]["faithfulness"] == pytest.approx(1.0, abs=1e-6)
        assert rules.faithfulness_at(curve, 1.0) == pytest.approx(1.0, abs=1e-6)
    one, other = (curve["cmd"] for curve in row["curves"])
    assert one != other
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"model": "tiny", "rows": [row]}))
    line = rules.table([file]).split("\n")[-1]
    assert line.startswith("| tiny, custom, logit_diff | ends |")
    assert f"| {(one + other) / 2:.3f} | {one:.3f}, {other:.3f} |" in line
