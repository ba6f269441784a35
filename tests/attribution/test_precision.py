"""bfloat16 and float16: rounding is not taken for a changed model, and a changed model not for rounding."""

import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny_models import random_pairs, tiny_model

from headwatch import UnsupportedModelError, score_edges, score_heads
from headwatch.errors import NonFiniteError
from headwatch.model.layouts import LAYOUTS

ARCHITECTURES = ["llama", "gemma3", "gpt2", "granite", "olmo2"]


def half(architecture: str, how: str) -> tuple[Any, AbstractContextManager[Any]]:
    """A model under autocast, or with weights of 16 bits; its stream is a hundred times larger than what changes it."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(how, torch.float32)
    model = tiny_model(architecture, torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, :2] = 100.0
    return model.to(dtype), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")


@pytest.mark.parametrize("how", ["autocast", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounding_of_a_large_stream_is_accepted(architecture: str, how: str) -> None:
    model, autocast = half(architecture, how)
    with autocast:
        heads = score_heads(model, random_pairs(4), steps=2)
    assert torch.isfinite(heads.per_pair).all()


@pytest.mark.parametrize("how", ["autocast", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layer_that_adds_something_of_its_own_is_refused(architecture: str, how: str) -> None:
    model, autocast = half(architecture, how)
    layers = model.transformer.h if architecture == "gpt2" else model.model.layers

    class Adds(type(layers[0])):  # type: ignore[misc]
        def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(hidden, *args, **kwargs)
            changed = (output[0] if isinstance(output, tuple) else output) + 1.0 * hidden.roll(1, -1)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

    layers[0].__class__ = Adds
    with pytest.raises(UnsupportedModelError, match="do not add up"), autocast:
        score_heads(model, random_pairs(4), steps=2)


def test_row_sums_of_edges_are_head_scores_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        edges = score_edges(tiny_model("llama", torch.float32), random_pairs(6), steps=2)
    assert edges.checks.row_sums is not None
    assert edges.checks.row_sums < 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_as_such(value: float) -> None:
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        score_heads(model, random_pairs(3), steps=2)


KINDS = {"llama": "rms", "gemma": "rms+1", "starcoder2": "layer", "nemotron": "layer+1"}


@pytest.mark.parametrize("kind", ["rms", "rms+1", "layer", "layer+1"])
@pytest.mark.parametrize("architecture", list(KINDS))
def test_a_wrong_kind_of_norm_is_refused(architecture: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, architecture, replace(LAYOUTS[architecture], norm=kind))
    model = tiny_model(architecture, torch.float32)
    if kind == KINDS[architecture]:
        assert score_edges(model, random_pairs(3), steps=2).checks.row_sums < 1e-5
        return
    with pytest.raises(UnsupportedModelError, match="do not add up to their head scores"):
        score_edges(model, random_pairs(3), steps=2)


@pytest.mark.parametrize(("setting", "by_new_interface"), [("high", False), ("medium", False), ("high", True)])
def test_tf32_is_off_for_our_products_and_restored(setting: str, by_new_interface: bool) -> None:
    """In a process of its own: torch refuses a mixture of its two interfaces for the rest of a process."""
    code = f"""
import torch
from headwatch.model.precision import without_tf32
matmul = torch.backends.cuda.matmul
if {by_new_interface}:
    matmul.fp32_precision = "tf32"
    read = lambda: matmul.fp32_precision
else:
    torch.set_float32_matmul_precision({setting!r})
    read = torch.get_float32_matmul_precision
before = read()
try:
    with without_tf32():
        assert matmul.fp32_precision != "tf32"
        raise KeyError
except KeyError:
    pass
assert read() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
