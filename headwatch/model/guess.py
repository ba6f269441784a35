"""Guess the layout of an unknown architecture from the names and sizes of its modules."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from headwatch.model.layouts import Fused, Layout, NormKind
from headwatch.model.reduced import text_config

# Names by role, in transformers and in other code bases; the first that a layer has is taken.
_NAMES: dict[str, tuple[str, ...]] = {
    "attention": ("self_attn", "self_attention", "attention", "attn", "temporal_block"),
    "out": ("o_proj", "out_proj", "dense", "c_proj", "wo", "attention.o_proj"),
    "attn_norm": (
        "input_layernorm",
        "operator_norm",
        "attention_layernorm",
        "attention_norm",
        "ln_1",
        "norm1",
        "self_attn_layer_norm",
    ),
    "mlp_norm": (
        *(
            "pre_feedforward_layernorm",
            "pre_mlp_layernorm",
            "pre_ff_layernorm",
            "feedforward_layernorm",
            "ffn_norm",
            "ln_2",
            "norm2",
        ),
        *("post_attention_layernorm", "final_layer_norm", "mlp_norm"),
    ),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "feedforward"),
}
_QKV = (("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"), ("query", "key", "value"))
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "wqkv", "Wqkv", "qkv")
_AFTER = {
    "attn_post_norm": ("post_attention_layernorm", "post_self_attn_layernorm"),
    "mlp_post_norm": ("post_feedforward_layernorm", "post_mlp_layernorm"),
}


def guessed_layouts(model: nn.Module) -> list[Layout]:
    """Layouts with the names that the model's modules have, the likeliest first; empty if no layers are found."""
    stack = _layers(model)
    if stack is None:
        return []
    path, layers = stack
    with_attention = [layer for layer in layers if any(getattr(layer, name, None) for name in _NAMES["attention"])]
    if not with_attention:
        return []
    layer, parent = with_attention[0], model.get_submodule(path.rpartition(".")[0])
    width = text_config(model.config).hidden_size
    found: dict[str, Any] = {
        "layers": path,
        "hybrid": len(with_attention) < len(layers),
        **_final_norm(path, parent, width),
    }
    names = dict(layer.named_children())
    for role in ("attention", "attn_norm", "mlp_norm", "mlp"):
        found[role] = next((name for name in _NAMES[role] if name in names), None)
    attention = names.get(found["attention"])
    if attention is None or found["mlp"] is None:
        return []
    inside = dict(attention.named_children())
    found["out"] = next((name for name in _NAMES["out"] if name in inside), "o_proj")
    fused = [name for name in _FUSED if name in inside]
    found["qkv"] = next((own for own in _QKV if all(name in inside for name in own)), tuple(fused[:1]) or _QKV[0])
    norms = [name for name, module in names.items() if _is_norm(module, width)]
    for role, own in _AFTER.items():
        if found["mlp_norm"] not in own:
            found[role] = next((name for name in own if name in norms), None)
    if len(norms) == 1:
        found |= {"mlp_norm": norms[0], "attn_norm": norms[0], "parallel": True}
    kind = norm_kind(names[norms[0]], width) if norms else None
    layout = replace(Layout(**found), norm=kind or "rms")
    orders: tuple[Fused | None, ...] = ("stacked", "interleaved") if len(layout.qkv) == 1 else (None,)
    guesses = [replace(layout, fused=order) for order in orders]
    widths = [name for name in ("q_norm", "k_norm") if _norm_width(inside.get(name)) >= width // 2]
    if len(widths) == 2:
        guesses = [replace(each, width_norms=("q_norm", "k_norm")) for each in guesses] + guesses
    return guesses + [replace(each, parallel=not each.parallel) for each in guesses if len(norms) != 1]


@torch.no_grad()
def norm_kind(module: nn.Module, width: int) -> NormKind | None:
    """The kind of a norm, measured on random numbers; None if it is of no kind that a layout can name."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is None:
        return None
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(weight)
    found = module(x)
    kinds: tuple[NormKind, ...] = ("rms", "rms+1", "layer", "layer+1")
    for kind in kinds:
        centred = x - x.mean(-1, keepdim=True) if kind.startswith("layer") else x
        scale = weight + 1 if kind.endswith("+1") else weight
        expected = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True)) * scale
        expected = expected if bias is None else expected + bias
        if torch.allclose(found, expected, rtol=1e-3, atol=1e-3):  # up to epsilon
            return kind
    return None


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The module list with one entry per layer of the text model, the largest if there are several."""
    count = text_config(model.config).num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return max(lists, key=lambda each: sum(p.numel() for p in each[1].parameters()), default=None)


def _final_norm(path: str, parent: nn.Module, width: int) -> dict[str, str]:
    names = [name for name, module in parent.named_children() if _is_norm(module, width)]
    prefix = path.rpartition(".")[0]
    return {"final_norm": f"{prefix}.{names[-1]}" if prefix and names else "model.norm"}


def _is_norm(module: nn.Module, width: int) -> bool:
    """Whether a module has one weight per entry of the residual vector, and nothing inside."""
    return _norm_width(module) == width and not list(module.children())


def _norm_width(module: nn.Module | None) -> int:
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) and weight.dim() == 1 else 0
