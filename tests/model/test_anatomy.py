"""Anatomy: sizes, names and existing edges."""

from typing import Any

import pytest
from helpers.tiny_models import tiny_model
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from headwatch import Anatomy, UnsupportedModelError


def test_sizes_and_names() -> None:
    anatomy = Anatomy.of(tiny_model("qwen2"))
    assert (anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads) == (3, 6, 2)
    assert (anatomy.head_dim, anatomy.d_model) == (4, 24)
    assert len(anatomy.sources) == 1 + 3 * 7
    assert len(anatomy.targets) == 3 * 19 + 1
    assert anatomy.sources[anatomy.mlp_source(1)] == "m1"
    assert anatomy.targets[anatomy.mlp_target(2)] == "m2"
    assert anatomy.targets[anatomy.attention_targets(1)][4] == "a1.h1.k"


def test_number_of_edges_in_the_paper() -> None:
    """Qwen2.5-Math-1.5B has 28 layers of 12 heads: 183,555 edges (attribution.md)."""
    config = Qwen2Config(
        vocab_size=8, hidden_size=24, intermediate_size=8, num_hidden_layers=28, num_attention_heads=12, head_dim=2
    )
    anatomy = Anatomy.of(Qwen2ForCausalLM(config))
    assert (len(anatomy.sources), len(anatomy.targets)) == (365, 1037)
    assert int(anatomy.is_real().sum()) == 183_555


def test_real_edges_of_a_parallel_layer() -> None:
    """The MLP of a parallel layer reads the input of attention, not its own layer's heads."""
    parallel, sequential = Anatomy.of(tiny_model("neox")), Anatomy.of(tiny_model("neox-sequential"))
    real = parallel.is_real()
    assert not real[parallel.head_source(1), parallel.mlp_target(1)].any()
    assert real[parallel.mlp_source(0), parallel.mlp_target(1)]
    assert real[: parallel.head_source(1).start, parallel.mlp_target(1)].all()
    assert int(sequential.is_real().sum()) - int(real.sum()) == 2 * 4  # L layers of H heads each


def test_unsloth_is_refused_whether_it_patches_the_class_or_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth sets `LlamaAttention.forward` and, with LoRA, `self_attn.apply_o` (unsloth 015bdef, August 2026)."""

    def apply_lora_o(self: Any, x: Any) -> Any:
        raise AssertionError

    apply_lora_o.__module__ = "unsloth.kernels.fast_lora"
    model = tiny_model("llama")
    model.model.layers[1].self_attn.apply_o = apply_lora_o
    with pytest.raises(UnsupportedModelError, match="Unsloth has replaced its attention"):
        Anatomy.of(model)
    monkeypatch.setattr(LlamaAttention, "forward", apply_lora_o)
    with pytest.raises(UnsupportedModelError, match="Unsloth has replaced its attention"):
        Anatomy.of(tiny_model("llama"))
