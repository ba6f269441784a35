"""Projections that read one input: with and without `fused_parts`; needs no kernel and no triton."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tiny_models import largest_error, random_pairs, tiny_model
from torch import Tensor, nn

from headwatch.kernels import model_parts
from headwatch.kernels.model_parts import fused_parts
from headwatch.model.hooks import has_own_forward


class Reader(nn.Module):
    """An attention's three projections, called in an order of the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(6, 8), nn.Linear(6, 4, bias=False), nn.Linear(6, 4)
        self.double().requires_grad_(False)


def applied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every `Linear` from now on: whether it continues the one before."""
    calls: list[bool] = []
    apply = model_parts.Linear.apply

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        calls.append(type(x.grad_fn).__name__ == "LinearBackward")
        return apply(x, weight, bias)

    monkeypatch.setattr(model_parts.Linear, "apply", counted)
    return calls


def gradient(model: Reader, run: Callable[[Reader, Tensor], Tensor], fused: bool) -> list[Tensor]:
    """The result and the gradient of the input."""
    leaf = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    x = leaf * 2
    if fused:
        with fused_parts(model):
            out = run(model, x)
    else:
        out = run(model, x)
    return [out.detach(), *torch.autograd.grad(out, leaf)]


def in_order(model: Reader, x: Tensor) -> Tensor:
    return model.q_proj(x).sin().sum() + (model.k_proj(x) * model.v_proj(x).cos()).sum()


def reversed_and_twice(model: Reader, x: Tensor) -> Tensor:
    return (model.v_proj(x) * model.k_proj(x)).sum() + model.q_proj(x).sin().sum() + model.v_proj(x).cos().sum()


def another_input(model: Reader, x: Tensor) -> Tensor:
    return model.q_proj(x).sin().sum() + (model.k_proj(x.sin()) * model.v_proj(x)).sum()


def changed_in_place(model: Reader, x: Tensor) -> Tensor:
    first = model.q_proj(x).sin().sum()
    x.mul_(3)
    return first + (model.k_proj(x) * model.v_proj(x).cos()).sum()


@pytest.mark.parametrize(
    ("run", "continued"),
    [
        (in_order, [False, True, True]),
        (reversed_and_twice, [False, True, True, False]),
        (another_input, [False, False, False]),
        (changed_in_place, [False, False, True]),
    ],
    ids=["in order", "reversed and twice", "another input", "changed in place"],
)
def test_gradients_are_those_of_autograd(
    run: Callable[[Reader, Tensor], Tensor], continued: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Reader()
    expected = gradient(model, run, fused=False)
    calls = applied(monkeypatch)
    for own, plain in zip(gradient(model, run, fused=True), expected, strict=True):
        assert largest_error(own, plain) < 1e-13
    assert calls == continued
    assert not any(has_own_forward(module) or "forward" in vars(module) for module in model.modules())


def test_hooks_run_and_may_change_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Reader()
    model.k_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.v_proj.register_forward_hook(lambda module, args, output: output * 3)
    model.q_proj.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 5,))
    expected = gradient(model, in_order, fused=False)
    calls = applied(monkeypatch)
    for own, plain in zip(gradient(model, in_order, fused=True), expected, strict=True):
        assert largest_error(own, plain) < 1e-13
    assert calls == [False, False, False]


def test_everything_else_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass, a forward on the instance, another dtype, autocast, a weight of a tensor subclass, no gradients."""

    class Adapted(nn.Linear):
        pass

    class Sharded(Tensor):
        pass

    model, calls = Reader().float(), applied(monkeypatch)
    x = torch.randn(2, 6, requires_grad=True)
    with fused_parts(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            in_order(model, x)
        with torch.no_grad():
            in_order(model, x)
        in_order(model, x.detach())
        assert not calls
        model.q_proj.weight = nn.Parameter(model.q_proj.weight.data.as_subclass(Sharded), requires_grad=False)
        in_order(model, x)
    assert len(calls) == 2  # k and v
    calls.clear()
    model.q_proj, model.k_proj = Adapted(6, 8), nn.Linear(6, 4)
    model.k_proj.forward = lambda x: nn.Linear.forward(model.k_proj, x)  # type: ignore[method-assign]
    with fused_parts(model):
        in_order(model, x)
    assert has_own_forward(model.k_proj)
    assert not calls


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_in_a_model_all_five_projections(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model(architecture), applied(monkeypatch)
    x = model.get_input_embeddings()(random_pairs(2, 6).clean).detach().requires_grad_()
    model.requires_grad_(False)

    def run() -> Tensor:
        return torch.autograd.grad(model(inputs_embeds=x).logits.sin().sum(), x)[0]

    expected = run()
    monkeypatch.setattr(model_parts, "_replacement", lambda module: None)  # the kernels need a GPU
    monkeypatch.setattr(model_parts, "same_code", lambda *functions: False)
    with fused_parts(model):
        found = run()
    assert largest_error(found, expected) < 1e-13
    layers = len(model.model.layers)
    assert calls == [False, True, True, False, True] * layers
