"""Kernels in a run: what fails or does not pay is not used. On a CPU every kernel fails, as it needs a GPU."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import random_pairs, tiny_model
from helpers.tiny_trainers import save_tiny_model, sft_trainer

from headwatch import HeadWatchCallback, UserError, score_heads
from headwatch.attribution.fused_operations import PARTS
from headwatch.attribution.kernel_trial import PartTrial
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.attribution.tolerance import HALF_LIMIT, limit_of
from headwatch.kernels.launch import KernelError
from headwatch.monitor.run_kernels import RunKernels

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on a GPU")


def test_a_kernel_that_fails_is_named_in_one_line() -> None:
    model, probes = tiny_model("llama", torch.float32), random_pairs(2)
    with pytest.raises(KernelError, match=r"^the kernel \w+ failed \(.*\); kernels=\"torch\" runs without kernels$"):
        score_pairs(model, probes, ScoringSettings(), kernel_parts=PARTS)
    with pytest.raises(UserError, match=r'^kernels="triton" needs a? ?(CUDA device|triton)'):
        score_heads(model, probes, kernels="triton")


def test_a_part_is_used_where_it_agrees_and_is_faster() -> None:
    assert PartTrial("model", 1e-6, 0.9).passes(1e-4)
    for trial in (
        PartTrial("model", 1e-3, 0.9),
        PartTrial("model", 1e-6, 1.1),
        PartTrial("model", float("nan"), 0.9),
        PartTrial("model", failure="it failed"),
    ):
        assert not trial.passes(1e-4)
    assert limit_of(tiny_model("llama", torch.bfloat16)) == HALF_LIMIT
    assert limit_of(tiny_model("llama", torch.float32)) < HALF_LIMIT


def test_a_trial_of_kernels_that_fail_ends_without_them(caplog: pytest.LogCaptureFixture) -> None:
    model, probes = tiny_model("llama", torch.float32), random_pairs(2)
    kernels, settings, metrics = RunKernels(), ScoringSettings(), dict.fromkeys(probes.family_names, "logit_diff")
    assert kernels.decide(model, probes, metrics, settings) == ()  # a CPU: nothing is tried
    assert kernels.to_record() is None
    with caplog.at_level(logging.WARNING):
        kernels._try(model, probes, metrics, lambda: settings, None)
    entry = kernels.to_record()
    assert entry is not None
    assert (kernels.parts, entry["parts"]) == ((), [])
    assert "the kernel" in entry["failure"]
    assert [trial["part"] for trial in entry["trials"]] == list(PARTS)
    assert caplog.text.count("kernels are not used where they fail") == 1
    assert kernels.to_record() is None  # once


def test_a_resumed_run_goes_on_as_it_began() -> None:
    again = RunKernels()
    again._take({"parts": ["scores"], "limit": 1e-4}, usable=True)
    assert again.parts == ("scores",)
    assert again.to_record() is None
    elsewhere = RunKernels()
    elsewhere._take({"parts": ["scores"], "limit": 1e-4}, usable=False)
    assert elsewhere.parts == ()
    assert elsewhere.to_record() == {"parts": [], "limit": 1e-4, "failure": "triton is not installed"}


def test_a_run_whose_kernel_fails_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_tiny_model(tmp_path / "model")

    def record(name: str) -> Any:
        watch = HeadWatchCallback("addition", every=2, n_pairs=8, strict=True)
        sft_trainer(model, tmp_path / name, [watch], max_steps=2).train()
        assert watch.run is not None
        return watch.run

    plain = record("plain")
    assert "kernels" not in plain.manifest

    def chosen(self: RunKernels, *arguments: Any, **options: Any) -> tuple[str, ...]:
        """As if both parts had agreed and been faster at the first probe."""
        if not self._decided:
            self._decided, self.parts = True, PARTS
            self._record({"parts": list(PARTS)})
        return self.parts

    monkeypatch.setattr(RunKernels, "decide", chosen)
    with caplog.at_level(logging.WARNING):
        found = record("kernels")
    assert caplog.text.count("a pass with kernels failed, plain PyTorch is used from now on (KernelError: ") == 1
    assert found.manifest["kernels"]["parts"] == []
    assert "the kernel" in found.manifest["kernels"]["failure"]
    assert found.manifest["status"] == "finished"
    assert found.steps == plain.steps == [0, 2]
    for step in found.steps:
        assert (found.read_scores(step).head_scores == plain.read_scores(step).head_scores).all()
