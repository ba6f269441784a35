"""Models as training holds them: with adapters, compiled, under autocast, quantised; and models that are refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny_models import COMMON, largest_error, random_pairs, tiny_model
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from headwatch import UnsupportedModelError, score_edges, score_heads
from headwatch.attribution.naive import naive_edges

ADAPTERS = {
    "dora": LoraConfig(r=3, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
    "lora-fused": LoraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM"),
    "lora-post-norm": LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [
        ("qwen2", "dora"),
        ("qwen2", "ia3"),
        ("gpt2", "lora-fused"),
        ("phi3", "lora-post-norm"),
        ("olmo2", "lora-post-norm"),
    ],
)
def test_adapters_of_every_kind(architecture: str, adapter: str) -> None:
    model = get_peft_model(tiny_model(architecture), ADAPTERS[adapter])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_B", "ia3", "magnitude")):
            parameter.data += (
                torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter) * 0.3
            )
    probes = random_pairs(3)
    edges = score_edges(model, probes, steps=2)
    assert largest_error(edges.per_pair, naive_edges(model, probes, steps=2)) < 1e-9
    assert edges.checks.row_sums < 1e-9
    assert edges.checks.stream < 1e-9
    assert largest_error(score_heads(model, probes, steps=2).per_pair, edges.heads.per_pair) < 1e-9
    with model.disable_adapter():
        assert largest_error(score_edges(model, probes, steps=2).per_pair, edges.per_pair) > 0.01


@pytest.mark.parametrize("how", ["whole", "in place", "layers", "attention"])
def test_compiled_models(how: str) -> None:
    """The pass runs the model as it was written: it compiles nothing, and training's graphs are there afterwards."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    probes = random_pairs(3, side="none")
    plain = score_edges(tiny_model("qwen2"), probes, steps=2)
    model: Any = tiny_model("qwen2")
    if how == "whole":
        model = torch.compile(model, backend=backend)
    elif how == "in place":
        model.compile(backend=backend)
    elif how == "layers":
        model.model.layers = nn.ModuleList([torch.compile(layer, backend=backend) for layer in model.model.layers])
    else:
        for layer in model.model.layers:
            layer.self_attn = torch.compile(layer.self_attn, backend=backend)
    before = model(probes.clean).logits
    compiled = len(graphs)
    assert compiled
    edges = score_edges(model, probes, steps=2)
    assert largest_error(edges.per_pair, plain.per_pair) < 1e-9
    assert largest_error(score_heads(model, probes, steps=2).per_pair, plain.heads.per_pair) < 1e-9
    assert torch.equal(model(probes.clean).logits, before)
    assert len(graphs) == compiled


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("qwen2", "bfloat16"), ("gemma3", "bfloat16"), ("gpt2", "bfloat16"), ("qwen2", "float16")],
)
def test_autocast_changes_the_model_and_not_the_arithmetic_of_the_scores(architecture: str, dtype: str) -> None:
    model, probes = tiny_model(architecture, torch.float32), random_pairs(8)
    plain = score_edges(model, probes)
    autocast = torch.autocast("cpu", getattr(torch, dtype))
    with autocast:
        edges, heads = score_edges(model, probes), score_heads(model, probes)
        assert torch.is_autocast_enabled("cpu")
    assert edges.per_pair.dtype == torch.float32
    limit = {"bfloat16": 0.15, "float16": 0.02}[dtype]
    assert 1e-5 < largest_error(edges.per_pair, plain.per_pair) < limit  # the model did run in half precision
    assert largest_error(heads.per_pair, plain.heads.per_pair) < limit
    assert edges.checks.row_sums < 0.05
    assert edges.checks.stream < 0.05
    model.forward = autocast(model.forward)  # as accelerate does it: here nothing but the model is under autocast
    assert largest_error(edges.per_pair, score_edges(model, probes).per_pair) < 1e-5


class Int8Linear(nn.Module):
    """A linear layer whose only tensors are packed: weights as whole numbers, one scale for all of them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max() / 127)
        self.packed = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        bias = None if linear.bias is None else (linear.bias / self.scale).round().to(torch.int8)
        self.packed_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def unpacked(self) -> nn.Linear:
        linear = nn.Linear(*reversed(self.packed.shape), bias=self.packed_bias is not None)
        linear.weight.data = self.packed.float() * self.scale
        if self.packed_bias is not None:
            linear.bias.data = self.packed_bias.float() * self.scale
        return linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.packed.to(x.dtype) * self.scale
        bias = None if self.packed_bias is None else self.packed_bias.to(x.dtype) * self.scale
        return nn.functional.linear(x, weight, bias)


@pytest.mark.parametrize("architecture", ["qwen2", "olmo2"])
def test_layers_without_a_readable_weight(architecture: str) -> None:
    """Quantised layers are asked for their linear map: the scores are those of the model with their values."""
    quantised, unpacked = tiny_model(architecture, torch.float32), tiny_model(architecture, torch.float32)
    for name, module in list(quantised.named_modules()):
        if isinstance(module, nn.Linear) and "proj" in name:
            packed = Int8Linear(module)
            quantised.set_submodule(name, packed)
            unpacked.set_submodule(name, packed.unpacked())
    probes = random_pairs(3)
    expected = score_edges(unpacked, probes, steps=2)
    edges = score_edges(quantised, probes, steps=2)
    assert largest_error(edges.per_pair, expected.per_pair) < 1e-5
    assert largest_error(edges.heads.per_pair, expected.heads.per_pair) < 1e-5


QUANTISED = {
    "nf4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}, 1e-5),
    "fp4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.float32}, 1e-5),
    "int8": ({"load_in_8bit": True}, 0.1),  # rounds the inputs of every layer as well
}


@pytest.mark.parametrize("kind", list(QUANTISED))
def test_models_quantised_by_bitsandbytes(kind: str, tmp_path: Path) -> None:
    """They score as the model with their values does; a LoRA on top is part of the model."""
    pytest.importorskip("bitsandbytes")
    options, tolerance = QUANTISED[kind]
    config = {**COMMON, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 32}
    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    plain.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.BitsAndBytesConfig(**options), device_map="cpu", dtype=torch.float32
    )
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module.weight.is_floating_point():
            continue
        if kind == "int8":
            scale = module.weight.SCB if module.state.SCB is None else module.state.SCB
            values = module.weight.data.float() * scale[:, None] / 127
        else:
            values = dequantized(module)
        plain.get_submodule(name).weight.data = values
    probes = random_pairs(3)
    edges, expected = score_edges(model, probes, steps=2), score_edges(plain, probes, steps=2)
    assert largest_error(edges.heads.per_pair, expected.heads.per_pair) < tolerance
    assert largest_error(edges.per_pair, expected.per_pair) < tolerance
    assert not torch.equal(expected.per_pair, score_edges(tiny_plain(tmp_path), probes, steps=2).per_pair)

    adapted = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    with_adapter = score_edges(adapted, probes, steps=2)
    assert with_adapter.checks.row_sums < tolerance
    assert largest_error(with_adapter.per_pair, edges.per_pair) > tolerance


def dequantized(module: nn.Module) -> torch.Tensor:
    import bitsandbytes

    weight: Any = module.weight
    return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()


def tiny_plain(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_what_the_pass_overrides_is_put_back_when_it_fails() -> None:
    def broken(logits: torch.Tensor, clean_logits: torch.Tensor, reads: Any) -> torch.Tensor:
        if logits.requires_grad:
            raise RuntimeError("broken")
        return logits.sum((1, 2))

    model, probes = tiny_model("phi3"), random_pairs(2)
    before = [dict(vars(layer.self_attn)) for layer in model.model.layers]
    assert before[0]["num_key_value_heads"] == 2
    with pytest.raises(RuntimeError, match="broken"):
        score_edges(model, probes, broken)
    score_edges(model, probes)
    for state, layer in zip(before, model.model.layers, strict=True):
        for name in ("num_key_value_heads", "num_key_value_groups"):
            assert vars(layer.self_attn)[name] == state[name]
        assert not layer.self_attn.o_proj._forward_pre_hooks


def tiny(name: str, **own: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**{**COMMON, "head_dim": 4, **own})
    return transformers.AutoModelForCausalLM.from_config(config)


def test_refusals_say_why() -> None:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    small_t5 = transformers.T5Config(
        vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, **special
    )
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    wrong_norm = tiny("Llama")
    wrong_norm.model.layers[0].input_layernorm = nn.Identity()
    no_proj = tiny("Llama")
    del no_proj.model.layers[1].self_attn.v_proj
    cases: list[tuple[nn.Module, list[str]]] = [
        (nn.Linear(2, 2), ["Linear", "model_type", "headwatch doctor"]),
        (tiny("OpenAIGPT"), ["openai-gpt", "normalises the residual stream"]),
        (tiny("Mamba", state_size=4, **special), ["mamba", "no attention heads"]),
        (transformers.T5ForConditionalGeneration(small_t5), ["t5", "encoder-decoder"]),
        (tiny("Gemma3Text", use_bidirectional_attention=True, **special), ["both directions"]),
        (tiny("Olmoe", num_experts=4, num_experts_per_tok=2, clip_qkv=3.0, **special), ["clip_qkv=3.0"]),
        (get_peft_model(tiny("Llama"), prompt), ["PROMPT_TUNING", "its own tokens", "LoRA"]),
        (wrong_norm, ["input_layernorm", "Identity", "epsilon"]),
        (no_proj, ["model.layers.1.self_attn.v_proj"]),
    ]
    for model, words in cases:
        with pytest.raises(UnsupportedModelError) as caught:
            score_heads(model, random_pairs(1))
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words), message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_stream_that_is_no_sum_of_the_parts_is_refused(dtype: torch.dtype) -> None:
    """A layer changed by hand: what it passes on is no longer what came in plus what its parts add."""
    model, probes = tiny_model("llama", dtype), random_pairs(2)
    changed = copy.deepcopy(model)
    layer = changed.model.layers[1]

    class Halves(type(layer)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs) * 0.5

    layer.__class__ = Halves
    for score in (score_heads, score_edges):
        score(model, probes, steps=1)
        with pytest.raises(UnsupportedModelError, match="do not add up to its residual stream"):
            score(changed, probes, steps=1)
