"""Hooks of the user's: those that change what formulas assume are refused, the others are part of what is scored."""

from typing import Any

import pytest
import torch
from helpers.tiny_models import largest_error, random_pairs, tiny_model

from headwatch import UnsupportedModelError, score_edges
from headwatch.attribution.naive import naive_edges
from headwatch.model.hooks import hooked, overridden

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def larger(module: Any, args: Any, output: Any) -> Any:
    return (output[0] * 1.01, *output[1:]) if isinstance(output, tuple) else output * 1.01


def larger_input(module: Any, args: tuple[Any, ...]) -> Any:
    return (args[0] * 1.01, *args[1:])


@pytest.mark.parametrize("part", [f"self_attn.{name}" for name in PROJECTIONS] + ["self_attn", "input_layernorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hook_that_changes_an_output_is_refused(part: str, dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype)
    module = model.get_submodule(f"model.layers.1.{part}")
    with (
        hooked(module.register_forward_hook(larger)),
        pytest.raises(UnsupportedModelError, match=rf"a forward hook on model.layers.1.{part} changes its output"),
    ):
        score_edges(model, random_pairs(2), steps=1)


@pytest.mark.parametrize(
    "part", ["self_attn.q_proj", "self_attn.v_proj", "input_layernorm", "post_attention_layernorm"]
)
def test_a_hook_that_changes_an_input_is_refused(part: str) -> None:
    model = tiny_model("llama", torch.float32)
    module = model.get_submodule(f"model.layers.1.{part}")
    with (
        hooked(module.register_forward_pre_hook(larger_input)),
        pytest.raises(UnsupportedModelError, match=rf"a forward pre-hook on model.layers.1.{part} changes its input"),
    ):
        score_edges(model, random_pairs(2), steps=1)


def test_a_hook_that_changes_its_argument_in_place_is_refused() -> None:
    model = tiny_model("llama", torch.float32)

    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        output.mul_(1.01)

    with (
        hooked(model.model.layers[0].self_attn.k_proj.register_forward_hook(hook)),
        pytest.raises(UnsupportedModelError, match="changes its output"),
    ):
        score_edges(model, random_pairs(2), steps=1)


@pytest.mark.parametrize("part", ["self_attn.o_proj", "mlp"])
def test_hooks_on_black_boxes_are_part_of_what_is_scored(part: str) -> None:
    """The input of o_proj (where heads are scaled) and the MLP."""
    model, probes = tiny_model("llama"), random_pairs(2)
    module = model.get_submodule(f"model.layers.1.{part}")
    plain = score_edges(model, probes, steps=2).per_pair
    change = (
        module.register_forward_pre_hook(larger_input) if "o_proj" in part else module.register_forward_hook(larger)
    )
    with hooked(change):
        found, expected = score_edges(model, probes, steps=2).per_pair, naive_edges(model, probes, steps=2)
    assert largest_error(found, expected) < 1e-9
    assert largest_error(found, plain) > 1e-4


def test_hooks_that_change_nothing_are_no_obstacle() -> None:
    model, probes, seen = tiny_model("llama", torch.float32), random_pairs(2), []
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_hook(lambda module, args, output: seen.append(1)))
        handles.append(module.register_forward_pre_hook(lambda module, args: args))
    plain = score_edges(tiny_model("llama", torch.float32), probes, steps=1).per_pair
    with hooked(*handles):
        assert torch.equal(score_edges(model, probes, steps=1).per_pair, plain)
    assert seen


def test_a_replaced_forward_is_scored_if_it_is_linear_and_refused_if_not() -> None:
    model, probes = tiny_model("llama"), random_pairs(2)
    module = model.model.layers[0].self_attn.q_proj
    with overridden(module, forward=lambda x: x @ module.weight.T * 1.5):
        found, expected = score_edges(model, probes, steps=2).per_pair, naive_edges(model, probes, steps=2)
        assert largest_error(found, expected) < 1e-9
    with (
        overridden(module, forward=lambda x: (x @ module.weight.T).tanh()),
        pytest.raises(UnsupportedModelError, match=r"self_attn.q_proj was replaced by one that is not a linear map"),
    ):
        score_edges(model, probes, steps=1)
