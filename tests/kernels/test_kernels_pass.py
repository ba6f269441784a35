"""A whole pass with kernels against the plain one."""

import pytest
import torch
from helpers.tiny_models import largest_error, random_openers, random_pairs, tiny_model

from headwatch import ProbeSet, score_edges, score_heads
from headwatch.attribution import kernel_trial
from headwatch.attribution.fused_operations import PARTS
from headwatch.attribution.kernel_trial import try_parts
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.attribution.tolerance import FLOAT32_LIMIT
from headwatch.errors import UserError
from headwatch.kernels import launch

OPENERS, PAIRS = random_openers(2, 6, 3), random_pairs(2, 6)


def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the kernels that run from now on."""
    names: set[str] = set()
    code = launch._code()

    class Recording:
        def __getattr__(self, name: str) -> object:
            names.add(name)
            return getattr(code, name)

    monkeypatch.setattr(launch, "_code", Recording)
    return names


@pytest.mark.parametrize(
    ("architecture", "dtype", "probes", "limit"),
    [
        ("llama", torch.float32, OPENERS, 1e-5),
        ("qwen2", torch.float32, PAIRS, 1e-5),
        ("qwen2", torch.bfloat16, OPENERS, 5e-2),  # gradients are rounded at fewer places than in the plain pass
    ],
    ids=["llama", "qwen2", "qwen2-bf16"],
)
def test_a_pass_with_kernels_is_the_plain_pass(
    architecture: str,
    dtype: torch.dtype,
    probes: ProbeSet,
    limit: float,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(architecture, dtype).to(device)
    plain = score_edges(model, probes, steps=2, kernels="torch")
    names = launched(monkeypatch)
    found = score_edges(model, probes, steps=2, kernels="triton")
    assert {"rms_norm", "rms_norm_backward", "swiglu", "rotary", "head_scores", "head_space", "expand"} <= names
    assert "add_squares" in names
    assert found.heads.checks.stream == pytest.approx(plain.heads.checks.stream, abs=1e-6)
    assert ("after_prefix" in names) == (probes is OPENERS)
    assert largest_error(found.per_pair, plain.per_pair) < limit
    assert largest_error(found.heads.per_pair, plain.heads.per_pair) < limit
    names.clear()
    assert torch.equal(score_edges(model, probes, steps=2).per_pair, plain.per_pair)  # "auto" tries none in one call
    assert not names


def test_heads_alone(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of a group of heads are repeated by the kernel that puts the prefix before them."""
    model = tiny_model("qwen2", torch.float32).to(device)
    plain = score_heads(model, OPENERS, steps=1, kernels="torch")
    names = launched(monkeypatch)
    assert largest_error(score_heads(model, OPENERS, steps=1, kernels="triton").per_pair, plain.per_pair) < 1e-5
    assert "after_prefix_backward" in names


@pytest.mark.parametrize("architecture", ["gemma3", "olmo2", "gpt2", "phi3"])
def test_where_kernels_do_not_fit_the_plain_operations_run(
    architecture: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other norms, norms of queries and keys, norms after o_proj, fused projections."""
    model, probes = tiny_model(architecture, torch.float32).to(device), random_pairs(1, 6)
    settings = ScoringSettings(steps=1, batch_size=1)
    names = launched(monkeypatch)
    found = score_pairs(model, probes, settings, kernel_parts=("scores",))
    assert ("head_space" in names) == (architecture in ("gemma3", "phi3"))
    assert largest_error(found.per_pair, score_pairs(model, probes, settings).per_pair) < 1e-5


def test_float64_is_refused(device: torch.device) -> None:
    with pytest.raises(
        UserError, match=r'kernels="triton" computes in float32, but the model is float64; use kernels='
    ):
        score_heads(tiny_model("llama").to(device), PAIRS, kernels="triton")


def test_a_trial_measures_each_part(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(kernel_trial, "ROUNDS", 1)
    model = tiny_model("llama", torch.float32).to(device)
    settings = ScoringSettings(steps=1, edges=False, batch_size=1)
    trials = try_parts(model, random_pairs(2, 6, side="none"), "logit_diff", settings)
    assert [trial.part for trial in trials] == list(PARTS)
    for trial in trials:
        assert trial.failure is None
        assert trial.error is not None
        assert trial.error < 1e-5
        assert trial.time_ratio is not None
        if device.type == "cpu":  # the interpreter is slow
            assert trial.time_ratio > 1
            assert not trial.passes(FLOAT32_LIMIT)
