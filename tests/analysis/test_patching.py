"""Exact patching equals the naive implementation, and leaves no trace in the model."""

import copy
import functools

import pytest
import torch
from helpers.tiny_models import has_sdpa, largest_error, random_openers, random_pairs, tiny_model
from peft import LoraConfig, get_peft_model

from headwatch import UserError, patch_heads, score_heads
from headwatch.analysis import patching
from headwatch.analysis.naive_patching import naive_patch_heads
from headwatch.probes import ProbeSet

FAMILIES = ["qwen2", "qwen3", "llama-biases", "gemma2", "gemma3", "gpt2", "neox", "olmo2", "phi3", "mixtral"]


def assert_equal(found: patching.HeadPatches, expected: patching.HeadPatches, limit: float = 1e-9) -> None:
    assert found.heads == expected.heads
    for name in ("noising", "denoising"):
        assert largest_error(getattr(found, name), getattr(expected, name)) < limit
    for name in ("metric_clean", "metric_corrupted"):
        torch.testing.assert_close(
            getattr(found.readings, name).double(), getattr(expected.readings, name), rtol=limit, atol=limit
        )


@pytest.mark.parametrize("architecture", FAMILIES)
def test_all_heads_equal_the_naive_implementation(architecture: str) -> None:
    model = tiny_model(architecture, attention="sdpa" if has_sdpa(architecture) else "eager")
    for probes in (random_pairs(3), random_openers(1)):
        assert_equal(patch_heads(model, probes), naive_patch_heads(model, probes))


@pytest.mark.parametrize("metric", ["kl", "nll"])
def test_other_metrics_and_several_read_positions(metric: str) -> None:
    model, probes = tiny_model("qwen2"), random_pairs(3, reads=2)
    assert_equal(patch_heads(model, probes, metric=metric), naive_patch_heads(model, probes, metric))


@functools.cache
def naive_effects(openers: bool) -> patching.HeadPatches:
    return naive_patch_heads(tiny_model("qwen2"), random_openers(3) if openers else random_pairs(5))


@pytest.mark.parametrize(("tokens", "pairs"), [(1, 1), (30, 2), (60, 5), (10_000, None)])
@pytest.mark.parametrize("openers", [True, False], ids=["packed", "stacked"])
def test_any_number_of_heads_and_pairs_per_forward_pass(
    tokens: int, pairs: int | None, openers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patching, "TOKENS_AT_ONCE_CPU", tokens)
    model, probes = tiny_model("qwen2", torch.float32), random_openers(3) if openers else random_pairs(5)
    assert_equal(patch_heads(model, probes, batch_size=pairs), naive_effects(openers), 1e-4)


def test_chosen_heads_in_any_order_and_one_direction() -> None:
    model, probes = tiny_model("qwen2"), random_pairs(3)
    every = patch_heads(model, probes)
    some = patch_heads(model, probes, ["L2.H5", (0, 1), "a2.h0"], direction="denoising")
    assert some.heads == ((2, 5), (0, 1), (2, 0))
    assert some.noising is None
    assert every.denoising is not None
    assert largest_error(some.per_pair, every.denoising[:, [17, 1, 12]]) < 1e-9
    with pytest.raises(UserError, match="the model has no head L99"):
        patch_heads(model, probes, ["L99.H0"])
    with pytest.raises(UserError, match="direction='up' is unknown"):
        patch_heads(model, probes, direction="up")
    with pytest.raises(UserError, match="needs a clean and a corrupted answer"):
        patch_heads(model, ProbeSet.from_token_ids([[1, 2]], [[3, 2]]))


def test_progress_counts_every_effect() -> None:
    model, probes = tiny_model("qwen2"), random_pairs(3)
    for direction, directions in (("both", 2), ("noising", 1)):
        done: list[int] = []
        patch_heads(model, probes, [(0, 1), (1, 0), (1, 2)], direction=direction, batch_size=2, progress=done.append)
        assert sum(done) == len(probes) * 3 * directions
        assert len(done) > directions


def test_the_scores_estimate_the_effects() -> None:
    """In a model whose activations hardly change, the estimate is nearly exact, in both directions."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.01).add_(1.0)  # prompts differ little
    probes = random_pairs(6)
    found, estimated = patch_heads(model, probes), score_heads(model, probes, steps=10).per_pair.flatten(1)
    for effects in (found.noising, found.denoising):
        assert effects is not None
        assert torch.corrcoef(torch.stack([effects.flatten(), estimated.flatten()]))[0, 1] > 0.9


def test_adapters_are_part_of_the_model() -> None:
    model = get_peft_model(tiny_model("qwen2"), LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    probes = random_pairs(2)
    found = patch_heads(model, probes)
    assert_equal(found, naive_patch_heads(model, probes))
    with model.disable_adapter():
        assert largest_error(patch_heads(model, probes).noising, found.noising) > 0.01


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_no_trace_is_left_in_the_model(architecture: str) -> None:
    model, probes = tiny_model(architecture).train(), random_pairs(2)
    before, attributes = copy.deepcopy(model.state_dict()), [dict(vars(module)) for module in model.modules()]
    state = torch.get_rng_state()
    logits = model(probes.clean).logits
    torch.set_rng_state(state)
    patch_heads(model, probes)
    assert torch.equal(model(probes.clean).logits, logits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for module, known in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == known.keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training
