"""Equivalences of whole runs: real SFT and GRPO trainings end with the same weights with and without the callback."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_trainers import TRAINERS, logged, same_weights, trained_weights
from torch import Tensor
from transformers import TrainerCallback

from headwatch import HeadHistory, HeadWatchCallback, ProbeSet, RunFolder, UserError
from headwatch.attribution.metrics import Reads, logit_diff
from headwatch.lives.states import HeadState

VARIANTS = {
    f"{trainer}-{'lora' if lora else 'full'}-{'checkpointed' if checkpointed else 'plain'}": (
        trainer,
        {"lora": lora, "gradient_checkpointing": checkpointed},
    )
    for trainer, lora, checkpointed in itertools.product(TRAINERS, (False, True), (False, True))
}


def run(kind: str, model: Path, output: Path, *callbacks: TrainerCallback, **changes: Any) -> tuple[Any, Any]:
    """Train; the final weights and what was logged."""
    trainer = TRAINERS[kind](model, output, callbacks, **changes)
    trainer.train()
    return trained_weights(trainer), logged(trainer)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_bit_identical_with_the_callback(
    variant: str, tiny_model: Path, probes: ProbeSet, tmp_path: Path
) -> None:
    kind, changes = VARIANTS[variant]
    weights, logs = run(kind, tiny_model, tmp_path / "without", **changes)
    # Not strict: the worker's jobs run while the training goes on.
    watched, watched_logs = run(kind, tiny_model, tmp_path / "with", HeadWatchCallback(probes, every=2), **changes)
    assert same_weights(weights, watched)
    assert logs == watched_logs
    probed = {"sft": [0, 2, 4, 5], "grpo": [0, 2, 4]}  # of 5 and 4 steps: the last one is always probed
    record = RunFolder.open(tmp_path / "with" / "headwatch")
    assert (record.steps, record.status) == (probed[kind], "finished")


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_callback_that_draws_a_random_number_is_noticed(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """What the comparison above is worth: the least disturbance changes the run."""

    class Draws(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            torch.rand(1)

    weights, _ = run(kind, tiny_model, tmp_path)
    same, _ = run(kind, tiny_model, tmp_path, TrainerCallback())
    disturbed, _ = run(kind, tiny_model, tmp_path, Draws())
    assert same_weights(weights, same)
    assert not same_weights(weights, disturbed)


@pytest.mark.parametrize("kind", TRAINERS)
def test_without_learning_there_is_no_event(kind: str, tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    run(kind, tiny_model, tmp_path, HeadWatchCallback(probes, every=1, strict=True), learning_rate=0.0)
    folder = RunFolder.open(tmp_path / "headwatch")
    assert folder.events() == []
    scores = [folder.read_scores(step).head_scores for step in folder.steps]
    assert len(scores) >= 5
    assert all((later == scores[0]).all() for later in scores)
    for family in probes.family_names:
        states = set(HeadHistory.from_run(folder, family).state.ravel().tolist())
        assert states <= {HeadState.INACTIVE, HeadState.BASE, HeadState.RETAINED}


class FailsAt:
    """A user's metric that raises on its n-th call."""

    def __init__(self, call: int) -> None:
        self.calls, self.call = 0, call

    def __call__(self, logits: Tensor, clean_logits: Tensor, reads: Reads) -> Tensor:
        self.calls += 1
        if self.calls >= self.call:
            raise ArithmeticError("the user's metric failed")
        return logit_diff(logits, clean_logits, reads)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("call", [1, 8], ids=["at once", "later"])
def test_a_probe_that_fails_never_ends_the_training(
    kind: str, call: int, tiny_model: Path, probes: ProbeSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, logs = run(kind, tiny_model, tmp_path / "without")
    metric = FailsAt(call)
    callback = HeadWatchCallback(probes, every=1, scoring={"metric": metric, "edges": False})
    watched, watched_logs = run(kind, tiny_model, tmp_path / "with", callback)
    assert metric.calls == call  # called no more once it had failed
    assert same_weights(weights, watched)
    assert logs == watched_logs
    warnings = [record for record in caplog.records if "the user's metric failed" in record.getMessage()]
    assert [record.levelname for record in warnings] == ["WARNING"]
    folder = RunFolder.open(tmp_path / "with" / "headwatch")
    assert folder.manifest["status"] == "failed"
    assert (0 in folder.steps) == (call > 1)  # what was measured before stays


@pytest.mark.parametrize("kind", TRAINERS)
def test_strict_raises_what_the_probe_raised(kind: str, tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    callback = HeadWatchCallback(probes, every=1, scoring={"metric": FailsAt(1), "edges": False}, strict=True)
    with pytest.raises(ArithmeticError, match="the user's metric failed"):
        run(kind, tiny_model, tmp_path, callback)


def test_probes_that_do_not_fit_the_tokenizer_are_a_users_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such family"):
        run("sft", tiny_model, tmp_path, HeadWatchCallback("no such family"))
