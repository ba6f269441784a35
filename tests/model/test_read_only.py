"""The guard on real models: what goes in comes out, whatever happens inside."""

import logging
import random
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from headwatch.model.read_only import PassScope, ReadOnlyError, left_trace, read_only_pass

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.3,
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def qwen2(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **changes)).train()


def llama(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **changes)).train()


def lora() -> nn.Module:
    config = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    return get_peft_model(qwen2(), config)


def checkpointed() -> nn.Module:
    model = qwen2()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen2": qwen2,
    "llama": llama,
    "lora": lora,
    "checkpointed": checkpointed,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def mixed(model: nn.Module) -> nn.Module:
    """Flags that are not uniform: one module in eval mode, one parameter frozen, beside whatever LoRA froze."""
    model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("layers.0"))).eval()
    next(iter(model.parameters())).requires_grad_(False)
    return model


def state(model: nn.Module) -> dict[str, object]:
    """Everything that must not differ afterwards, comparable with ==."""
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: p.grad is None for name, p in model.named_parameters()},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def attribution(model: nn.Module, scope: PassScope) -> Tensor:
    """What a pass does: hooks, a forward from embeddings, one autograd.grad."""
    seen: list[Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("o_proj"):
            handle = module.register_forward_hook(lambda _m, _a, output: seen.append(output))
            scope.on_exit(handle.remove)
    embeddings = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits[:, -1, 3].sum(), embeddings)
    assert len(seen) == 2
    return gradient


def draw_from_everything() -> None:
    random.random()
    np.random.rand(3)
    torch.rand(3)


def test_a_pass_leaves_no_trace(model: nn.Module) -> None:
    before = state(mixed(model))
    with read_only_pass(model) as scope:
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        gradient = attribution(model, scope)
        draw_from_everything()
    assert gradient.abs().sum() > 0
    assert state(model) == before


def test_the_pass_is_deterministic_under_dropout(model: nn.Module) -> None:
    gradients = []
    for _ in range(2):
        with read_only_pass(model) as scope:
            gradients.append(attribution(model, scope))
    assert torch.equal(*gradients)


def test_training_continues_as_without_the_pass(model: nn.Module) -> None:
    def steps(probe: bool) -> list[Tensor]:
        model.load_state_dict(start)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-2)
        torch.manual_seed(1)
        for _ in range(3):
            if probe:
                with read_only_pass(model, optimizer) as scope:
                    attribution(model, scope)
                    draw_from_everything()
            model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in trainable]

    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, probed = steps(probe=False), steps(probe=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))
    assert not all(torch.equal(a, start[name]) for a, name in zip(plain, start, strict=False))


def test_an_exception_passes_unchanged_and_leaves_no_trace(model: nn.Module) -> None:
    before = state(mixed(model))
    error = KeyError("mine")

    def fail(scope: PassScope) -> None:
        attribution(model, scope)
        draw_from_everything()
        raise error

    with pytest.raises(KeyError) as caught, read_only_pass(model) as scope:
        fail(scope)
    assert caught.value is error
    assert not left_trace(error)
    assert state(model) == before


def test_passes_nest() -> None:
    model = qwen2()
    before = state(model)
    with read_only_pass(model) as outer:
        first = attribution(model, outer)
        inside = torch.get_rng_state()
        with read_only_pass(model) as inner:
            before_inner = model.config.use_cache
            inner.on_exit(lambda: setattr(model.config, "use_cache", before_inner))
            model.config.use_cache = False
            torch.rand(1)
        assert model.config.use_cache == before_inner
        assert torch.equal(torch.get_rng_state(), inside)
        assert not model.training
        embeddings = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
        (second,) = torch.autograd.grad(logits[:, -1, 3].sum(), embeddings)
    assert torch.equal(first, second)
    assert state(model) == before


def test_the_base_of_an_adapter_can_be_read_inside() -> None:
    model = lora()  # leaving disable_adapter switches requires_grad on for the adapter: here, inside the pass
    before = state(mixed(model))
    with read_only_pass(model):
        adapted = model(input_ids=TOKENS).logits
        with model.disable_adapter():
            base = model(input_ids=TOKENS).logits
    assert not torch.equal(adapted, base)
    assert state(model) == before


def test_gradients_work_inside_inference_mode_and_no_grad() -> None:
    model = qwen2()
    for outside in (torch.inference_mode, torch.no_grad):
        with outside():
            with read_only_pass(model) as scope:
                assert attribution(model, scope).abs().sum() > 0
            assert not torch.is_grad_enabled()


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_length_dependent_rotary_frequencies_come_back(rope_type: str) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 64}
    model = llama(rope_parameters=rope)
    model(input_ids=torch.ones(1, 80, dtype=torch.long))  # training has gone beyond 64 tokens; the pass reads 6
    rotary = model.model.rotary_emb
    before = (rotary.inv_freq.tolist(), getattr(rotary, "max_seq_len_cached", None), rotary.inv_freq.data_ptr())
    with read_only_pass(model):
        model(input_ids=TOKENS)
        assert rotary.inv_freq.tolist() != before[0]
    after = (rotary.inv_freq.tolist(), getattr(rotary, "max_seq_len_cached", None), rotary.inv_freq.data_ptr())
    assert after == before


def backward(model: nn.Module) -> None:
    next(iter(model.parameters())).requires_grad_(True)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()


def write_weight(model: nn.Module) -> None:
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)


@pytest.mark.parametrize(("change", "says"), [(backward, "grad was set inside"), (write_weight, "changed in place")])
def test_a_change_inside_is_reported(change: Callable[[nn.Module], None], says: str) -> None:
    model = qwen2()
    with pytest.raises(ReadOnlyError, match=says) as caught, read_only_pass(model):
        change(model)
    assert left_trace(caught.value)
    assert all(p.grad is None for p in model.parameters())  # a gradient is put back, a written weight can't be
    assert all(p.requires_grad for p in model.parameters())


def test_gradients_in_the_making_are_kept() -> None:
    model = qwen2()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()  # between the halves of a gradient accumulation
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    with read_only_pass(model) as scope:
        attribution(model, scope)
    assert all(
        p.grad is kept and torch.equal(kept, copy)
        for p, (kept, copy) in zip(model.parameters(), gradients, strict=True)
    )
    with pytest.raises(ReadOnlyError, match="grad was changed in place"), read_only_pass(model):
        gradients[0][0].zero_()


def test_what_the_body_registers_is_undone_in_reverse() -> None:
    order: list[str] = []
    with read_only_pass(qwen2()) as scope:
        scope.on_exit(lambda: order.append("first"))
        scope.on_exit(lambda: order.append("second"))
    assert order == ["second", "first"]


@pytest.mark.parametrize("body_fails", [False, True])
def test_one_failing_step_does_not_keep_the_others_from_running(
    body_fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = mixed(qwen2())
    before = state(model)
    error = ValueError("mine")

    def step_that_fails() -> None:
        raise OSError("gone")

    with ExitStack() as stack:
        caught = stack.enter_context(pytest.raises((ValueError, ReadOnlyError)))
        caplog.set_level(logging.ERROR)
        with read_only_pass(model) as scope:
            scope.on_exit(model.register_forward_pre_hook(lambda *_: None).remove)
            scope.on_exit(step_that_fails)
            draw_from_everything()
            if body_fails:
                raise error
    assert left_trace(caught.value)
    if body_fails:
        assert caught.value is error
        assert "OSError: gone" in caught.value.__notes__[0]
        assert "OSError: gone" in caplog.text
    else:
        assert "OSError: gone" in str(caught.value)
    assert state(model) == before
