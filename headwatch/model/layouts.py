"""Layouts: one entry per supported architecture, with the names of its parts and its differences from Llama."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

NormKind = Literal["rms", "rms+1", "layer", "layer+1"]
Fused = Literal["stacked", "interleaved"]


@dataclass(frozen=True)
class Layout:
    """Paths of one architecture's parts, relative to a decoder layer. The defaults are Llama's.

    To add an architecture, add an entry to `LAYOUTS` under its `config.model_type` with what differs; the tests in
    tests/attribution/ then check it against the naive reference (docs/reference/models.md).

    Attributes:
        layers, final_norm: paths relative to the model.
        norm: the kind of all norms named here. "rms": w x / rms(x); "rms+1": (1 + w) x / rms(x); "layer": LayerNorm;
            "layer+1": LayerNorm with scale 1 + w.
        attn_norm, mlp_norm: the norms before attention and MLP, the same name if they share one; None if they read the
            residual vector directly.
        attention, out, mlp: the attention module, its output projection, the MLP (an expert block is one MLP).
        qkv: the projections of queries, keys and values; a single one if they are fused.
        fused: row order of a fused projection. "stacked": all queries, all keys, all values; "interleaved": query, key,
            value of the first head, then of the second, and so on.
        width_norms: norms over all query heads and over all key heads, after the projections. Norms over one head at a
            time need no entry.
        attn_post_norm, mlp_post_norm: norms after attention and MLP, before the residual addition.
        multiplier: attribute of a decoder layer that scales what attention and MLP add to the stream.
        parallel: whether MLP and attention of a layer read the same vector; or the attribute of the layer that is true
            then.
    """

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    norm: NormKind = "rms"
    attn_norm: str | None = "input_layernorm"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused: Fused | None = None
    width_norms: tuple[str, str] | None = None
    out: str = "o_proj"
    attn_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_post_norm: str | None = None
    multiplier: str | None = None
    parallel: str | bool = False


_LLAMA = Layout()
_GEMMA = replace(
    _LLAMA,
    norm="rms+1",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_OLMO2 = replace(
    _LLAMA,
    attn_norm=None,
    width_norms=("q_norm", "k_norm"),
    attn_post_norm="post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="post_feedforward_layernorm",
)


def _text_path(layout: Layout) -> Layout:
    """The same layout for the text model inside a vision-language model."""
    return replace(layout, layers="model.language_model.layers", final_norm="model.language_model.norm")


LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("arcee", "ernie4_5", "glm", "helium", "hunyuan_v1_dense", "mellum", "seed_oss"), _LLAMA),
    **dict.fromkeys(("ministral", "ministral3"), _LLAMA),
    **dict.fromkeys(("dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "hunyuan_v1_moe", "solar_open"), _LLAMA),
    **dict.fromkeys(("jais2", "stablelm"), replace(_LLAMA, norm="layer")),
    "nemotron": replace(_LLAMA, norm="layer+1"),
    "apertus": replace(_LLAMA, attn_norm="attention_layernorm", mlp_norm="feedforward_layernorm"),
    "exaone4": replace(_OLMO2, width_norms=None),
    "glm4": replace(_LLAMA, attn_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm"),
    "minimax_m2": replace(_LLAMA, width_norms=("q_norm", "k_norm")),
    # Vision-language models: their text path. The images' tokens have no probe pairs.
    **dict.fromkeys(("internvl", "llava", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"), _text_path(_LLAMA)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3_moe": _LLAMA,
    "starcoder2": replace(_LLAMA, norm="layer"),
    "granite": replace(_LLAMA, multiplier="residual_multiplier"),
    "granitemoe": replace(_LLAMA, mlp="block_sparse_moe", multiplier="residual_multiplier"),
    "phi3": replace(_LLAMA, qkv=("qkv_proj",), fused="stacked"),
    "gemma": replace(_LLAMA, norm="rms+1"),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": _text_path(_GEMMA),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "olmoe": replace(_LLAMA, width_norms=("q_norm", "k_norm")),
    "gpt2": Layout(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        norm="layer",
        attn_norm="ln_1",
        attention="attn",
        qkv=("c_attn",),
        fused="stacked",
        out="c_proj",
        mlp_norm="ln_2",
    ),
    "gpt_neox": Layout(
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        norm="layer",
        attention="attention",
        qkv=("query_key_value",),
        fused="interleaved",
        out="dense",
        parallel="use_parallel_residual",
    ),
}

_NOT_ATTENTION = "some or all of its layers are recurrent or convolutional and have no attention heads to score"
_LATENT = "its heads read keys and values from a shared compressed vector after a norm of its own"
_POST_LN = "it normalises the residual stream itself after every block, so the stream is not a sum of outputs"
_PER_LAYER = "its layers differ in head width, and each adds an embedding of its own to the stream"
_FLATTENED = "its expert block returns a flat list of tokens"
_TWO_MLPS = "a layer adds the outputs of two MLPs"
_SHARED_NORM = "attention and MLP of a layer share one norm"
_NO_SCALE = "its norms have no weights"
_SEVERAL = "it mixes several residual streams, so none of them is a sum of the heads' and MLPs' outputs"

REFUSED: dict[str, str] = {
    **dict.fromkeys(["mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "bamba"], _NOT_ATTENTION),
    **dict.fromkeys(["zamba", "zamba2", "nemotron_h", "falcon_h1", "lfm2", "granitemoehybrid"], _NOT_ATTENTION),
    **dict.fromkeys(["qwen3_next", "qwen3_5", "qwen3_5_text", "olmo_hybrid"], _NOT_ATTENTION),
    **dict.fromkeys(["deepseek_v2", "deepseek_v3"], _LATENT),
    **dict.fromkeys(["openai-gpt", "bert", "roberta"], _POST_LN),
    **dict.fromkeys(["gemma4", "gemma4_text"], _PER_LAYER),
    **dict.fromkeys(["llama4", "llama4_text"], _FLATTENED),
    "granitemoeshared": _TWO_MLPS,
    "olmo": _NO_SCALE,
    **dict.fromkeys(["cohere", "cohere2", "persimmon", "phi"], _SHARED_NORM),
    **dict.fromkeys(["gemma3n", "gemma3n_text"], _SEVERAL),
}
"""Why an architecture is not supported, for the error message."""


@contextmanager
def registered(model_type: str, layout: Layout) -> Iterator[None]:
    """Use a layout for a model type inside the block, whether or not the type has an entry."""
    before = LAYOUTS.get(model_type)
    LAYOUTS[model_type] = layout
    try:
        yield
    finally:
        del LAYOUTS[model_type]
        if before is not None:
            LAYOUTS[model_type] = before
