"""A small random model of a configuration's own class: the same architecture with reduced sizes."""

import copy
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import nn

WIDTH, HEADS, HEAD_DIM, VOCABULARY, MOST_LAYERS = 32, 4, 8, 64, 8

# Sizes by the names that configurations use; those that a configuration does not have are skipped.
_SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "max_position_embeddings": 128, "head_dim": HEAD_DIM, "num_attention_heads": HEADS},
    **{"intermediate_size": 48, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    **{"shared_intermediate_size": 16, "intermediate_size_mlp": 48, "ffn_hidden_size": 48, "n_inner": 48},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2},
    **{"top_k_experts": 2, "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    **{"first_k_dense_replace": 1, "moe_layer_start_index": 1, "sliding_window": 4, "attention_chunk_size": 8},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_window_layers": 1, "rotary_dim": 4},
}
# Sizes of image and sound towers; if these do not fit together, the depth alone is reduced.
_DEPTH = {"depth": 1, "num_hidden_layers": 1}
_TOWER = {
    **_DEPTH,
    **{"hidden_size": 32, "embed_dim": 32, "intermediate_size": 32, "num_heads": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "out_hidden_size": WIDTH},
}


def text_config(config: Any) -> Any:
    """The configuration of the text model; itself if it is one."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def reduced(config: Any) -> Any:
    """A copy of a configuration with reduced sizes: few layers, of every kind that the original has."""
    config = copy.deepcopy(config)
    config.quantization_config = None
    del config.quantization_config
    text = text_config(config)
    before, layers = text.num_hidden_layers, _layers(text)
    n_heads, n_kv_heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    heads_width = n_heads * (getattr(text, "head_dim", None) or 0) or text.hidden_size
    extra = (heads_width < text.hidden_size) - (heads_width > text.hidden_size)
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == before:
            setattr(text, name, value[:layers])
        elif isinstance(value, list) and name.endswith(("_layers", "_idxs", "_indexes", "_layer_ids")):
            setattr(text, name, [each for each in value if each < layers])
    for name, value in _SIZES.items():
        old = getattr(text, name, None)
        if isinstance(old, list) and isinstance(value, int):
            setattr(text, name, [value] * layers)
        elif isinstance(old, int) and not isinstance(old, bool) and (old > value or "token_id" in name):
            with suppress(AttributeError):  # a property
                setattr(text, name, value)
    for name, value in {"attn_layer_period": 2, "attn_layer_offset": 1, "attn_layer_indices": [layers - 1]}.items():
        if getattr(text, name, None) is not None:  # hybrids with rare attention layers
            setattr(text, name, value)
    for name, value in (("head_dim", HEAD_DIM), ("num_key_value_heads", HEADS)):
        if getattr(text, name, 0) is None:
            setattr(text, name, value)
    text.num_hidden_layers, text.hidden_size = layers, WIDTH + HEAD_DIM * extra
    if n_kv_heads is not None:
        text.num_key_value_heads = HEADS if n_kv_heads == n_heads else min(2, n_kv_heads)
    for rope in _ropes(text):
        if "mrope_section" in rope or text is not config:
            half = int(HEAD_DIM * (rope.get("partial_rotary_factor") or 1.0)) // 2
            rope["mrope_section"] = [half - 2 * (half // 4), half // 4, half // 4]
    return config


def _reduce_towers(config: Any, sizes: dict[str, int]) -> Any:
    """A copy of a configuration in which the image and sound towers, which a text does not use, are small."""
    config = copy.deepcopy(config)
    for tower in filter(None, (getattr(config, name, None) for name in ("vision_config", "audio_config"))):
        for name, value in sizes.items():
            if isinstance(getattr(tower, name, None), int):
                setattr(tower, name, value)
    return config


def random_model(config: Any, seed: int = 0, **options: Any) -> nn.Module:
    """A random float64 model of a configuration, in eval mode, with eager attention; no part of it is negligible.

    Args:
        config: the configuration.
        seed: seed of the weights; the caller's random state is unchanged.
        options: options of `from_config`, such as trust_remote_code.
    """
    config = copy.deepcopy(config)
    text_config(config)._experts_implementation = "eager"  # the grouped product has no float64
    if hasattr(config, "vision_config"):
        try:
            return _random_model(_reduce_towers(config, _TOWER), seed, options)
        except (RuntimeError, ValueError, TypeError):  # sizes that do not fit together
            config = _reduce_towers(config, _DEPTH)
    return _random_model(config, seed, options)


def _random_model(config: Any, seed: int, options: dict[str, Any]) -> nn.Module:
    named = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
    auto = transformers.AutoModelForImageTextToText if hasattr(config, "vision_config") else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if named is not None and hasattr(named, "_from_config"):
            model = named._from_config(config, attn_implementation="eager")
        else:
            kind = auto or transformers.AutoModelForCausalLM
            model = kind.from_config(config, attn_implementation="eager", **options)
        model = model.double().eval()
        for parameter in model.parameters():  # norm weights about 1, as when trained
            parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return model


def _layers(text: Any) -> int:
    """The fewest layers, at least 2, among which every kind of layer occurs; at most `MOST_LAYERS`."""
    kinds = [value for value in vars(text).values() if isinstance(value, list) and len(value) == text.num_hidden_layers]
    needed = 2
    for kind in kinds:
        firsts = {str(each): kind.index(each) + 1 for each in kind}
        needed = max(needed, *firsts.values())
    return int(min(needed, MOST_LAYERS, max(2, text.num_hidden_layers)))


def _ropes(text: Any) -> list[dict[str, Any]]:
    found = [getattr(text, name, None) for name in ("rope_parameters", "rope_scaling")]
    return [each for each in found if isinstance(each, dict)]
