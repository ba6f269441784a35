"""Random models of every supported architecture, small enough for the naive reference, and pairs for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from headwatch import ProbeSet

VOCABULARY = 40
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # within the tiny vocabulary
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
GEMMA = {**SPECIAL, "query_pre_attn_scalar": 24, "sliding_window": 4, "final_logit_softcapping": 3.0}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
SHORT = {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 6}
MHA = {**SHORT, **SPECIAL, "num_key_value_heads": 4}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28}
MULTIPLIERS = {
    "residual_multiplier": 0.4,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.7,
    "logits_scaling": 0.5,
}
# What differs from COMMON, by architecture: (configuration class, its own settings).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-mha": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 6}),
    "mistral-sliding": ("MistralConfig", {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {**GEMMA, **SLIDING, "attn_logit_softcapping": None}),
    "gemma2-softcapped": ("Gemma2Config", {**GEMMA, **SHORT, "attn_logit_softcapping": 2.0}),
    "gemma2-biases": ("Gemma2Config", {**GEMMA, **SHORT, "attn_logit_softcapping": None, "attention_bias": True}),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, **SLIDING}),
    "phi3": ("Phi3Config", {**SHORT, **SPECIAL}),
    "gpt2": ("GPT2Config", MHA),
    "neox": ("GPTNeoXConfig", {**MHA, "rope_parameters": HALF_ROTARY}),
    "neox-sequential": ("GPTNeoXConfig", {**MHA, "use_parallel_residual": False}),
    "olmo2": ("Olmo2Config", {**SHORT, **SPECIAL}),
    "granite": ("GraniteConfig", {**SHORT, **MULTIPLIERS}),
    "mixtral": ("MixtralConfig", {**SHORT, **MOE}),
    "gemma": ("GemmaConfig", {**SHORT, **SPECIAL, "attention_bias": True}),
    "gemma3-with-vision": ("Gemma3Config", {"text_config": {**COMMON, **GEMMA, **SHORT}, "vision_config": VISION}),
    "olmo3": ("Olmo3Config", {**SHORT, **SPECIAL, "sliding_window": 4}),
    "olmoe": ("OlmoeConfig", {**SHORT, **SPECIAL, **MOE, "attention_bias": True}),
    "smollm3": ("SmolLM3Config", {**SHORT, **SPECIAL, "no_rope_layers": [1, 0]}),
    "starcoder2": ("Starcoder2Config", {**SHORT, **SPECIAL, "use_bias": True, "sliding_window": 4}),
    "granite-moe": ("GraniteMoeConfig", {**SHORT, **SPECIAL, **MOE, **MULTIPLIERS}),
    "qwen2-moe": ("Qwen2MoeConfig", {**SHORT, **SPECIAL, **MOE, "shared_expert_intermediate_size": 16}),
    "qwen3-moe": ("Qwen3MoeConfig", {**SHORT, **MOE, "mlp_only_layers": [0]}),
}


# Eager attention of these is tested by `make test` too: windows, biases, fused projections, norms of q and k, experts.
EAGER = {"llama", "qwen2", "gemma3", "gpt2", "phi3", "olmo2", "qwen3-moe"}


def with_attention() -> list[Any]:
    """Every architecture under the kinds of attention that it has; eager attention of most is a slow test."""
    found = []
    for name in ARCHITECTURES:
        slow = name not in EAGER and has_sdpa(name)
        found.append(pytest.param(name, "eager", marks=[pytest.mark.slow] if slow else [], id=f"{name}-eager"))
        found += [pytest.param(name, "sdpa", id=f"{name}-sdpa")] if has_sdpa(name) else []
    return found


# Further architectures, each with a layout of its own, tested against the naive reference alone.
GROUPED = {**SHORT, **SPECIAL, **MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
TEXT = {**COMMON, **SHORT, **SPECIAL}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]}}
QWEN_VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 24}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("ApertusConfig", {**SHORT, **SPECIAL}),
    "arcee": ("ArceeConfig", {**SHORT, **SPECIAL}),
    "dots1": ("Dots1Config", {**GROUPED, "first_k_dense_replace": 1, "n_shared_experts": 1}),
    "ernie4-5": ("Ernie4_5Config", {**SHORT, **SPECIAL, "use_bias": True}),
    "ernie4-5-moe": ("Ernie4_5_MoeConfig", {**SHORT, **SPECIAL, **MOE, "moe_num_experts": 4, "moe_k": 2}),
    "exaone4": ("Exaone4Config", {**SHORT, **SPECIAL, "sliding_window": 4}),
    "glm": ("GlmConfig", {**SHORT, **SPECIAL, "attention_bias": True}),
    "glm4": ("Glm4Config", {**SHORT, **SPECIAL}),
    "glm4-moe": ("Glm4MoeConfig", {**GROUPED, "first_k_dense_replace": 1}),
    "gpt-oss": ("GptOssConfig", {**SHORT, **SPECIAL, **MOE, "sliding_window": 4}),
    "helium": ("HeliumConfig", {**SHORT, **SPECIAL}),
    "hunyuan": ("HunYuanDenseV1Config", {**SHORT, **SPECIAL}),
    "hunyuan-moe": ("HunYuanMoEV1Config", {**SHORT, **SPECIAL, **MOE, "moe_topk": [2, 2]}),
    "jais2": ("Jais2Config", {**SHORT, **SPECIAL}),
    "mellum": ("MellumConfig", {**SHORT, **SPECIAL, **MOE}),
    "minimax-m2": ("MiniMaxM2Config", {**SHORT, **SPECIAL, **MOE}),
    "ministral": ("MinistralConfig", {**SHORT, **SPECIAL, "sliding_window": 4}),
    "ministral3": ("Ministral3Config", {**SHORT, **SPECIAL}),
    "nemotron": ("NemotronConfig", {**SHORT, **SPECIAL}),
    "seed-oss": ("SeedOssConfig", {**SHORT, **SPECIAL}),
    "solar-open": ("SolarOpenConfig", GROUPED),
    "stablelm": ("StableLmConfig", {**SHORT, **SPECIAL}),
    "internvl": (
        "InternVLConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": {**VISION, "patch_size": [14, 14], "image_size": [28, 28]},
        },
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "patch_size": 14},
        },
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**VISION, "model_type": "pixtral", "patch_size": 14, "head_dim": 8},
        },
    ),
    "qwen2-vl": (
        "Qwen2VLConfig",
        {
            "text_config": {**TEXT, **MROPE},
            "vision_config": {"depth": 1, "embed_dim": 8, "hidden_size": 24, "num_heads": 1},
        },
    ),
    "qwen2-5-vl": (
        "Qwen2_5_VLConfig",
        {"text_config": {**TEXT, **MROPE}, "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]}},
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        {
            "text_config": {**TEXT, **MROPE},
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        },
    ),
}
FLOAT32_ROUTERS = {"dots1", "ernie4-5-moe", "glm4-moe", "minimax-m2", "solar-open"}  # whatever the model's dtype


def has_sdpa(architecture: str) -> bool:
    """Whether transformers (5.23) can run it with sdpa: Gemma 2's soft-capped attention it cannot."""
    return not architecture.startswith("gemma2")


def tiny_model(architecture: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa", seed: int = 0) -> Any:
    """A random model, in eval mode; in float64 all of it, norms included."""
    name, own = (ARCHITECTURES | FURTHER)[architecture]
    config = getattr(transformers, name)(**{**COMMON, **own})
    if dtype == torch.float64 and "num_experts" in own:
        config._experts_implementation = "eager"  # the grouped product has no float64
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = transformers.AutoModelForImageTextToText if "vision_config" in own else transformers.AutoModelForCausalLM
        model = kind.from_config(config, attn_implementation=attention).double().eval()
        for parameter in model.parameters():
            # Norm weights around 1, everything else large enough that no path is negligible.
            parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    model.to(dtype)  # the same weights in every dtype
    if dtype == torch.float64:
        widen(model)
    return model


def softmax_in_float64(softmax: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """torch's softmax, which float64 stays float64 in: eager attention casts its own to float32, whatever the dtype."""

    def wide(x: torch.Tensor, dim: Any = None, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    return wide


def widen(model: nn.Module) -> None:
    """Let norms and routers compute in float64: the models' cast to float32 alone would leave an error of 1e-7."""
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.forward = _rms_norm_in_float64(module, name.startswith("Gemma"))  # type: ignore[method-assign]


def _rms_norm_in_float64(norm: Any, offset: bool) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        return (offset + norm.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    return forward


def random_pairs(n: int = 5, length: int = 9, side: str = "both", seed: int = 0, reads: int = 1) -> ProbeSet:
    """Pairs that begin to differ at various places, of various lengths, padded on the left, on the right or on both."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(VOCABULARY, (n, length), generator=generator)
    corrupted, mask = clean.clone(), torch.ones_like(clean)
    for row in range(n):
        padding = row % 3
        left = {"left": padding, "right": 0, "both": padding if row % 2 else 0, "none": 0}[side]
        right = 0 if side in ("left", "none") else padding - left
        mask[row, :left] = 0
        mask[row, length - right :] = 0
        for place in (left + row % 4, left + 4):
            corrupted[row, place] = (clean[row, place] + 1 + place) % VOCABULARY
    answers = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:2] for _ in range(n)])
    last = (mask * torch.arange(length)).argmax(1)
    positions = torch.stack([last - reads + 1 + i for i in range(reads)], 1)
    return ProbeSet.from_token_ids(clean, corrupted, attention_mask=mask, answers=answers, read_positions=positions)


def random_openers(n: int = 4, prefix: int = 14, suffix: int = 3, seed: int = 0, reads: int = 1) -> ProbeSet:
    """Pairs that share a long prefix and differ shortly, both of several lengths, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    rows, masks = [], []
    length = prefix + suffix
    for row in range(n):
        shared, differing = prefix - 2 * (row % 2), max(1, suffix - row % 3)
        clean = torch.randint(VOCABULARY, (length,), generator=generator)
        corrupted = clean.clone()
        corrupted[length - differing :] = (clean[length - differing :] + 1 + row) % VOCABULARY
        rows.append((clean, corrupted))
        masks.append(torch.arange(length) >= length - differing - shared)
    answers = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:2] for _ in range(n)])
    positions = torch.arange(length - reads, length).repeat(n, 1)
    clean, corrupted = (torch.stack(side) for side in zip(*rows, strict=True))
    return ProbeSet.from_token_ids(
        clean, corrupted, attention_mask=torch.stack(masks).long(), answers=answers, read_positions=positions
    )


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, over the largest entry of what was expected."""
    return float((found - expected).abs().max() / expected.abs().max())
