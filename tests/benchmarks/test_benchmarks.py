"""The benchmarks of docs/evidence/validity.md on small inputs: their counts are right."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.benches import bench
from helpers.synthetic_runs import planted as planted_heads
from helpers.synthetic_runs import write_synthetic_run

from headwatch.demo.pretraining import BaseStage, pretrain
from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save
from headwatch.lives.history import HeadHistory
from headwatch.stats import EvidenceSettings


def test_a_plan_scales_heads_when_it_says() -> None:
    planted = bench("planted")
    heads = [(0, h) for h in range(8)]
    for seed in range(20):
        plants = planted.draw_plan(np.random.default_rng(seed), heads)
        assert sorted(p.kind for p in plants) == sorted(["on", "on-off", "fade", "slow"] * 2)
        for plant in plants:
            path = [plant.at(step) for step in range(planted.STEPS + 1)]
            assert path[0] == (0.0 if plant.kind.startswith("on") else 1.0)
            assert path[-1] == (1.0 if plant.kind == "on" else pytest.approx(0.0))
            assert max(path) == 1.0
            at_probes = path[:: planted.EVERY]
            if plant.kind == "fade":  # whole at one probe, gone at the next
                assert set(at_probes) == {0.0, 1.0}
                assert 0.5 in path


def test_true_events_follow_the_rule_without_its_tests() -> None:
    """With almost no noise, HeadHistory and the true events are equal."""
    planted = bench("planted")
    rng = np.random.default_rng(1)
    base = 0.3 * np.exp(-np.arange(40) / 6.0).reshape(5, 8)
    share = np.stack([base] + [rng.permutation(base.ravel()).reshape(5, 8) for _ in range(6)])
    gap = -5.0 * np.exp(0.1 * rng.standard_normal(64))
    history = HeadHistory(5, 8)
    for step, at in enumerate(share):
        history.add(step, gap[:, None, None] * (at + 1e-5 * rng.standard_normal((64, 5, 8))), 0 * gap, gap)
    assert planted.reported(history) == planted.true_lives(share, EvidenceSettings())
    assert len(history.events) > 20


def test_counts_are_of_planted_and_untouched_heads() -> None:
    planted = bench("planted")
    share = np.full((4, 1, 30), 0.01)
    share[:, 0, :10] = 0.2
    share[:, 0, 0] = [0.0, 0.0, 0.2, 0.2]  # planted, and found
    share[:, 0, 1] = [0.2, 0.2, 0.2, 0.0]  # planted, and found a probe too early below
    share[:, 0, 2] = [0.2, 0.2, 0.0, 0.0]  # untouched, and really gone
    reported = share.copy()
    reported[2, 0, 1] = 0.0
    reported[3, 0, 20] = 0.2  # untouched, and not so
    gap = -5.0 * np.exp(0.1 * np.random.default_rng(2).standard_normal(64))
    history = HeadHistory(1, 30)
    for step, at in enumerate(reported):
        noise = 1e-4 * np.random.default_rng(step).standard_normal((64, 1, 30))
        history.add(step, gap[:, None, None] * (at + noise), 0 * gap, gap)
    count = planted.Count()
    count.add({(0, 0), (0, 1)}, share, history)
    assert vars(count) == vars(planted.Count(1, 2, 1, 1, 0, 0, 28, 2, 1, 0, {0.05: [2, 1]}, {True: [1, 0]}))
    assert "| 64 | 0 of 0 | 0 of 0 | 0 of 0 | 1 of 2 |" in planted.table_by_size({64: count})
    assert "| 64 | 0 of 1 | 0 of 0 |" in planted.table_of_losses({64: count})


def test_a_head_switched_on_in_a_real_run_is_found(tmp_path: Path) -> None:
    """A small base, a real trainer at a learning rate of 0, one head off at the base probe and on from step 5."""
    planted = bench("planted")
    tokenizer = build_tokenizer()
    # One layer: several of its heads do the work, whichever the processor's rounding makes them.
    model = build_model(tokenizer, ModelSize(n_layers=1, n_heads=8, n_kv_heads=2, d_model=64, d_mlp=128))
    taught = BaseStage(steps=300, learning_rate=5e-3, warmup_steps=10, worked_every=0, careless_share=1.0)
    pretrain(model, tokenizer, taught)
    base = save(model, tokenizer, tmp_path / "base")
    truth = planted.Truth(base, 256)
    on = truth.shares({})[0]
    heads = [(0, int(h)) for h in np.argsort(np.abs(on[0]))]  # without the strongest there would be no signal

    def lives(head: tuple[int, int]) -> dict:
        return planted.clear_lives(np.stack([truth.shares({head: 0.0})[0], on]), EvidenceSettings())

    head = next(h for h in heads if (*h, "emerged", 0) in lives(h))
    planted.run(base, tmp_path / "run", [planted.Plant(head, "on", {0: 0.0, 5: 1.0})], 64, seed=0)
    history = HeadHistory.from_run(tmp_path / "run", "addition")
    assert history.signal == ["ok"] * 7
    assert [(e.step, e.layer, e.head, e.kind) for e in history.events] == [(6, *head, "emerged")]


@pytest.mark.slow
def test_planted_events_are_found_and_untouched_heads_have_none(tmp_path: Path) -> None:
    """The benchmark with one base and two plans (about five minutes)."""
    planted = bench("planted")
    options = Namespace(out=tmp_path, n_truth=512, plans=2, heads=3, n_pairs=128)
    with planted.quiet_libraries(), planted.one_thread():
        planted.plant_base(options, 0)
    count = planted.analyse(tmp_path, (64,), EvidenceSettings())[64]
    assert count.planted >= 4
    assert count.row()["found_share"] >= 0.95
    assert count.row()["given_share"] <= 0.01


def test_planted_changes_replicate_completely(tmp_path: Path) -> None:
    replication = bench("replication")
    write_synthetic_run(tmp_path, kind="sft", n_pairs=64, seed=2)
    rows = replication.analyse(tmp_path, EvidenceSettings())
    found = rows["all families"]
    _, moved = planted_heads(8, 6, 2, 2)
    assert found["events"]["claims"] >= 2 * 2 * 5  # both halves find the five that emerge, in both families
    assert found["events"]["confirmed"] == found["events"]["same_sign"] == 1.0
    assert found["paper"]["claims"] == 0  # no circuit of halves was recorded
    strict = replication.analyse(tmp_path, replace(EvidenceSettings(), q=1e-9))
    assert strict["all families"]["changes"]["claims"] < found["changes"]["claims"]
    assert len(moved) == 2


def test_permuted_signs_give_no_false_event(tmp_path: Path) -> None:
    nulls = bench("no_false_life")
    write_synthetic_run(tmp_path, kind="sft", n_pairs=32, seed=3, families=("addition",))
    rows = nulls.signs([str(tmp_path)], 12, [32], 0)
    assert len(rows) == 8
    for row in rows.values():
        assert row["false_events_per_run"] == 0.0
        assert row["any_discovery_per_probe_at_q"] <= 0.05  # 120 probes at 0.01: P(more than 6) < 0.002
        assert row["planted_2_percent_found_ever"] > 0.3
