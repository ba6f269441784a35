"""The callback in real trainers: what it records, how it resumes, what it refuses. Whole runs: end_to_end/."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from transformers import TrainerCallback

from headwatch import (
    HeadHistory,
    HeadWatchCallback,
    ProbeSet,
    RunFolder,
    UnsupportedModelError,
    UserError,
    score_edges,
)
from headwatch.attribution import EdgeScores
from headwatch.circuits.circuit import Graph
from headwatch.circuits.stability import CircuitHeads, circuit_heads
from headwatch.lives.history_view import RULES
from headwatch.record.packed_edges import ABSOLUTE, RELATIVE
from headwatch.report.html import run_data
from headwatch.sinks import Sink


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class _AddsSink(TrainerCallback):
    """Adds a sink once the callback has made its own."""

    def __init__(self, watch: HeadWatchCallback, sink: Sink) -> None:
        self.watch, self.sink = watch, sink

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.sink not in self.watch._sinks:
            self.watch._sinks.append(self.sink)


def callback(**options) -> HeadWatchCallback:
    return HeadWatchCallback(["addition", "recall"], **{"every": 2, "n_pairs": 8, "strict": True, **options})


def found_circuit(edges: EdgeScores, run: RunFolder) -> CircuitHeads:
    """One family's circuit by the run's rule."""
    settings = run.manifest["settings"]
    graph = Graph(edges.sources, edges.targets, edges.is_real.numpy())
    return circuit_heads(edges.per_pair.abs().numpy(), graph, settings["circuit"]["top_n"], settings["circuit"]["tau"])


def test_record_equals_the_scores(model: Path, tmp_path: Path) -> None:
    trainer = sft_trainer(model, tmp_path, [callback(circuit={"top_n": 0.3})])
    trainer.train()
    run = RunFolder.open(tmp_path)
    assert run.steps == [0, 2, 4, 5]  # the base, every second step, and the end
    assert [row["step"] for row in run.scalars()] == run.steps
    assert run.manifest["status"] == "finished"
    assert run.manifest["trainer"] == "SFTTrainer"

    probes = ProbeSet.load(run.path / "probes.safetensors")
    assert probes.fingerprint == run.manifest["probes"]["fingerprint"]
    edges = score_edges(trainer.model, probes)  # the weights have not changed since the last probe
    last = run.read_scores(5)
    assert np.allclose(last.head_scores, edges.heads.per_pair.numpy())
    assert np.allclose(last.metric_clean, edges.heads.readings.metric_clean.numpy())
    recall = edges.select("recall").mean_abs().numpy()
    assert np.allclose(last.edges_mean_abs[1], recall, rtol=RELATIVE, atol=2 * ABSOLUTE * recall.max())
    assert last.circuit_active.shape == (2, 2, 4)
    circuits = {family: found_circuit(edges.select(family), run) for family in probes.family_names}
    assert np.allclose(last.importance_draws, [found.importance_draws for found in circuits.values()])
    for family, found in circuits.items():
        logged = found.scalars()
        assert logged.keys() >= {"edges", "stability", "half_agreement", "membership_changes_by_chance"}
        at_end = run.scalars()[-1]
        assert {key: at_end[f"{family}/circuit/{key}"] for key in logged} == pytest.approx(logged)
        summary = " ".join(run_data(run)["families"][family]["summary"]["sentences"])
        newly, gone = at_end[f"{family}/circuit/newly_active"], at_end[f"{family}/circuit/dropped"]
        inside = newly + gone <= logged["membership_changes_by_chance_high"]
        assert f"{'within' if inside else 'above'} its null band" in summary
    for row in run.scalars():
        assert row["row_sum_error"] < 1e-5
        assert row["stream_error"] < 1e-5
        assert row["seconds"] > 0

    logged = {row["step"]: row for row in run.training()}
    for row in trainer.state.log_history:
        if "loss" in row:
            assert logged[row["step"]]["loss"] == row["loss"]


def test_histories_on_disk_equal_the_callbacks(model: Path, tmp_path: Path) -> None:
    watch = callback(every=1)
    sft_trainer(model, tmp_path, [watch], learning_rate=0.05).train()
    events = RunFolder.open(tmp_path).events()
    assert events  # the learning rate is large enough for some
    live = [e for rule in (watch.histories, watch.circuits) for history in rule.values() for e in history.events]
    assert sorted(map(str, events)) == sorted(map(str, live))
    for rule, histories in zip(RULES, (watch.histories, watch.circuits), strict=True):
        for family, history in histories.items():
            read = HeadHistory.from_run(tmp_path, family, rule=rule)
            assert np.array_equal(read.state, history.state)


def test_resuming_equals_an_uninterrupted_run(model: Path, tmp_path: Path) -> None:
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0}  # the same in a run of another length
    whole = sft_trainer(model, tmp_path / "whole", [callback()], max_steps=6, **constant)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    cut = sft_trainer(model, tmp_path / "cut", [callback()], max_steps=5, **saving, **constant)
    cut.train()  # probes at 0, 2, 4, 5; the checkpoint is of step 3
    again = sft_trainer(model, tmp_path / "cut", [callback()], max_steps=6, **constant)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    run, expected = RunFolder.open(tmp_path / "cut"), RunFolder.open(tmp_path / "whole")
    assert run.steps == expected.steps == [0, 2, 4, 6]
    assert run.manifest["probes"] == expected.manifest["probes"]
    assert (run.path / "resumed-1").is_dir()  # the truncated part of the record is kept
    for step in run.steps:
        assert np.array_equal(run.read_scores(step).head_scores, expected.read_scores(step).head_scores)
    assert [row["step"] for row in run.training()] == [row["step"] for row in expected.training()]


def test_resuming_refuses_other_pairs(model: Path, tmp_path: Path) -> None:
    trainer = sft_trainer(model, tmp_path, [callback()], save_strategy="steps", save_steps=3)
    trainer.train()
    probes = tmp_path / "headwatch" / "probes.safetensors"
    ProbeSet.load(probes).select(range(4)).save(probes)
    with pytest.raises(UserError, match="fingerprint"):
        sft_trainer(model, tmp_path, [callback()], max_steps=6).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )


def test_without_edges(model: Path, tmp_path: Path) -> None:
    sft_trainer(model, tmp_path, [callback(scoring={"edges": False})]).train()
    run = RunFolder.open(tmp_path)
    assert run.read_scores(5).circuit_active is None
    assert "row_sum_error" not in run.scalars()[-1]
    assert HeadHistory.from_run(run).steps == run.steps


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": 2.5},
        {"every": True},
        {"every": "10"},
        {"n_pairs": 0},
        {"seed": -1},
        {"probes": ["addition", "nope"]},
        {"probes": "additon"},
        {"strict": 1},
        {"scoring": {"metric": "accuracy"}},
        {"scoring": {"alphas": "centre"}},
        {"scoring": {"steps": 0}},
        {"scoring": {"edges": "no"}},
        {"circuit": {"top_n": -1}},
        {"circuit": {"tau": 2.0}},
        {"evidence": {"q": 2}},
        {"openers": {"source": "guessed"}},
        {"alerts": {"min_drop": "much"}},
        {"wandb": "yes"},
        {"report_to": 5},
        {"folder": 5},
        {"openers": {"questions": 5}},
        {"scoring": {"batch_size": "x"}},
    ],
)
def test_invalid_arguments_are_refused_by_the_constructor(options: dict) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(UserError) as caught:
        HeadWatchCallback(**options)
    assert name in str(caught.value)
    if isinstance(value, dict):
        ((name, value),) = value.items()
        assert f".{name}=" in str(caught.value)
    assert str(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_probes_is_refused_before_the_first_step(model: Path, tmp_path: Path) -> None:
    trainer = sft_trainer(model, tmp_path, [HeadWatchCallback(tmp_path / "none.jsonl")])
    with pytest.raises(UserError, match=r"none\.jsonl"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_pairs_without_answers_are_refused_before_the_first_step(model: Path, tmp_path: Path) -> None:
    probes = ProbeSet.from_token_ids(torch.tensor([[1, 2]] * 8), torch.tensor([[1, 3]] * 8))
    trainer = sft_trainer(model, tmp_path, [HeadWatchCallback(probes)])
    with pytest.raises(UserError, match="logit_diff"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_unsupported_model_turns_probing_off_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import BloomConfig, BloomForCausalLM, TrainerControl, TrainerState, TrainingArguments

    bloom = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2))
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    probes = ProbeSet.from_token_ids(torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), answers=torch.tensor([[4, 5]]))
    state, control = TrainerState(max_steps=2), TrainerControl()
    watch = HeadWatchCallback(probes)
    watch.on_train_begin(arguments, state, control, model=bloom)
    watch.on_step_end(arguments, state, control, model=bloom)
    watch.on_train_end(arguments, state, control, model=bloom)
    (line,) = [record.getMessage() for record in caplog.records if "headwatch" in record.name]
    assert "could not start; probing is off" in line
    assert "bloom" in line
    with pytest.raises(UnsupportedModelError, match="bloom"):
        HeadWatchCallback(probes, strict=True).on_train_begin(arguments, state, control, model=bloom)


def test_a_trainer_without_a_tokenizer_names_the_argument(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = sft_trainer(model, tmp_path, [])
    watch = HeadWatchCallback("addition")
    watch.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model, processing_class=None)
    assert "HeadWatchCallback(tokenizer=" in caplog.text


def test_a_disk_that_is_full_at_the_start_turns_probing_off(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "create", full)
    trainer = sft_trainer(model, tmp_path, [HeadWatchCallback("addition", n_pairs=8)])
    trainer.train()
    assert trainer.state.global_step == 5
    assert caplog.text.count("probing is off") == 1


def test_weights_that_are_not_finite_at_the_start_turn_probing_off(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = sft_trainer(model, tmp_path, [HeadWatchCallback("addition", n_pairs=8)])
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    trainer.train()
    assert trainer.state.global_step == 5
    assert caplog.text.count("probing is off") == 1
    assert "NaN or infinite" in caplog.text


def test_a_sink_that_fails_at_the_end_does_not_end_the_training(model: Path, tmp_path: Path) -> None:
    class Fails(Sink):
        def finish(self, timeout: float = 30.0) -> None:
            raise OSError("gone")

    watch = HeadWatchCallback("addition", n_pairs=8)
    trainer = sft_trainer(model, tmp_path, [watch])
    trainer.add_callback(_AddsSink(watch, Fails()))
    trainer.train()
    assert trainer.state.global_step == 5
