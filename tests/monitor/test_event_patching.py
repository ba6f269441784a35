"""The heads of events are patched exactly at the probe that finds them, within a budget, and are in the record."""

import copy
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback

from headwatch import HeadHistory, HeadWatchCallback, ProbeSet, RunFolder, UserError
from headwatch.analysis.event_patching import BASE_FACTOR, heads_to_patch
from headwatch.analysis.naive_patching import naive_patch_heads
from headwatch.monitor import console, probe_pass, sharded_scoring
from headwatch.monitor.recorder import Recorder

# Nearly every change is an event: what is tested here is patching, not the evidence.
LAX = {"q": 0.9, "min_change": 0.0, "min_gap_t": 0.0, "require_nonzero_share": False, "confirm": "none"}
QUICK = {"every": 1, "n_pairs": 8, "strict": True, "evidence": LAX}
HEADS = (2, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class KeepsModels(TrainerCallback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights[state.global_step] = copy.deepcopy(model.state_dict())


Watched = tuple[RunFolder, HeadWatchCallback, dict[int, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def watched(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A short training with a learning rate so large that heads change."""
    folder, kept = tmp_path_factory.mktemp("run"), KeepsModels()
    watch = HeadWatchCallback(["addition", "recall"], patching="all", **QUICK)
    sft_trainer(model, folder, [watch, kept], learning_rate=0.05).train()
    return RunFolder.open(folder), watch, kept.weights


def test_effects_in_the_record_are_the_naive_ones(watched: Watched, model: Path) -> None:
    run, _, weights = watched
    probes = ProbeSet.load(run.path / "probes.safetensors")
    assert np.isfinite(run.read_scores(0).patched).all()  # the base: every head
    events = [event for event in run.events() if event.rule == "evidence"]
    step = Counter(event.step for event in events).most_common(1)[0][0]
    patched = run.read_scores(step).patched
    then = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    then.load_state_dict(weights[step])
    for family in run.families:
        rows = run.pairs_of(family)
        expected = naive_patch_heads(then, probes.select(rows.tolist())).noising.unflatten(1, HEADS).numpy()
        heads = {(e.layer, e.head) for e in events if (e.family, e.step) == (family, step)}
        for head in np.ndindex(*HEADS):
            found = patched[rows, *head]
            if head in heads:
                np.testing.assert_allclose(found, expected[:, *head], rtol=1e-3, atol=1e-4)
            else:
                assert np.isnan(found).all()


def test_events_carry_the_patched_shares_and_are_read_back(watched: Watched) -> None:
    run, watch, _ = watched
    events = [event for event in run.events() if event.rule == "evidence"]
    assert events
    for event in events:
        rows, scores = run.pairs_of(event.family), run.read_scores(event.step)
        share = scores.patched[rows, event.layer, event.head].mean() / np.mean(
            (scores.metric_corrupted - scores.metric_clean)[rows]
        )
        assert event.patched_now == pytest.approx(share, rel=1e-5)
        assert event.patched_before is not None
        assert event.patching in ("supports", "same sign", "contradicts")
    for family, history in watch.histories.items():
        assert HeadHistory.from_run(run, family).events == history.events
    last = run.scalars()[-1]
    patched = [e for e in events if e.family == "addition"]
    assert last["addition/events_patched"] == len(patched)
    assert last["addition/events_contradicted"] == sum(e.patching == "contradicts" for e in patched)


def test_patching_changes_nothing_else(watched: Watched, model: Path, tmp_path: Path) -> None:
    run, _, weights = watched
    without = HeadWatchCallback(["addition", "recall"], patching="none", **QUICK)
    trainer = sft_trainer(model, tmp_path, [without], learning_rate=0.05)
    trainer.train()
    other = RunFolder.open(tmp_path)
    for step in run.steps:
        assert np.array_equal(run.read_scores(step).head_scores, other.read_scores(step).head_scores)
        assert other.read_scores(step).patched is None
    for name, value in weights[max(weights)].items():
        assert torch.equal(trainer.model.state_dict()[name], value)
    assert all(event.patched_now is None for event in other.events())


def test_a_bar_counts_the_effects(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    def kept(step: int | None, n_effects: int, shown: bool) -> Any:
        bars.append(console.patching_bar(step, n_effects, shown=True))
        return bars[-1]

    monkeypatch.setattr(probe_pass, "patching_bar", kept)
    watch = HeadWatchCallback(["addition", "recall"], patching="all", **QUICK)
    sft_trainer(model, tmp_path, [watch], learning_rate=0.05).train()
    assert bars[0].total == 2 * 8 * HEADS[0] * HEADS[1]
    assert len(bars) > 1
    assert all(bar.n == bar.total for bar in bars)


def test_a_failure_turns_patching_off_and_not_probing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sharded_scoring, "patch_families", fail)
    with caplog.at_level(logging.WARNING):
        sft_trainer(model, tmp_path, [HeadWatchCallback("addition", **QUICK)], learning_rate=0.05).train()
    assert len(RunFolder.open(tmp_path).steps) > 2
    assert [r.message for r in caplog.records if "patching" in r.message] == [
        "headwatch: exact patching failed (RuntimeError: out of memory); events are recorded without it."
    ]


def test_a_failure_after_patching_never_ends_the_training(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory for the events")

    monkeypatch.setattr(Recorder, "add_patched", fail)
    trainer = sft_trainer(
        model, tmp_path, [HeadWatchCallback("addition", **{**QUICK, "strict": False})], learning_rate=0.05
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    assert sum("no memory for the events" in r.message for r in caplog.records) == 1


def test_the_budget() -> None:
    """The strongest heads first; a head of a later layer costs less."""
    history, rng = HeadHistory(4, 2), np.random.default_rng(0)
    share = np.array([[0.4, 0.01], [0.2, 0.02], [0.1, 0.03], [0.05, 0.04]])
    gap = -5.0 + 0.1 * rng.standard_normal(32)
    history.add(0, gap[:, None, None] * share, np.zeros(32), gap)
    ranked = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (2, 1), (1, 1), (0, 1)]
    assert heads_to_patch(history, "all", 0.0) == ranked
    assert heads_to_patch(history, "none", 99.0) == []
    once = BASE_FACTOR  # at the base probe
    assert heads_to_patch(history, "events", 2.5 / once) == ranked[:4]  # 1 + 3/4 + 1/2 + 1/4
    assert heads_to_patch(history, "events", 2.4 / once) == ranked[:3]
    history.add(1, gap[:, None, None] * share, np.zeros(32), gap)
    assert heads_to_patch(history, "all", 99.0) == []  # no events


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(UserError, match="patching='off' is unknown; use one of events, all, none"):
        HeadWatchCallback(patching="off")
