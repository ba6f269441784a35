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
        attention, out, mlp: the attention module, its output projection, the MLP (an expert block is one MLP). Several
            MLPs that read the same norm and whose outputs are added are one as well; a layer may lack some of them.
        qkv: the projections of queries, keys and values; a single one if they are fused.
        fused: row order of a fused projection. "stacked": all queries, all keys, all values; "interleaved": query, key,
            value of the first head, then of the second, and so on.
        width_norms: norms over all query heads and over all key heads, after the projections. Norms over one head at a
            time need no entry.
        attn_post_norm, mlp_post_norm: norms after attention and MLP, before the residual addition.
        multiplier: attribute of a decoder layer that scales what attention and MLP add to the stream.
        parallel: whether MLP and attention of a layer read the same vector; or the attribute of the layer that is true
            then.
        hybrid: whether some layers have no attention module (recurrent or convolutional layers). Such a layer is one
            node, mixer and MLP together.
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
    mlp: str | tuple[str, ...] = "mlp"
    mlp_post_norm: str | None = None
    multiplier: str | None = None
    parallel: str | bool = False
    hybrid: bool = False


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


def _text_path(layout: Layout, path: str = "model.language_model") -> Layout:
    """The same layout for the text model inside a vision-language model."""
    return replace(layout, layers=f"{path}.layers", final_norm=f"{path}.norm")


_GRANITE = replace(_LLAMA, multiplier="residual_multiplier")
_COHERE = replace(_LLAMA, norm="layer", mlp_norm="input_layernorm", parallel=True)
_GLM4 = replace(_LLAMA, attn_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm")


_QWEN3_NEXT = replace(_LLAMA, norm="rms+1", hybrid=True)
_LFM2 = replace(
    _LLAMA,
    final_norm="model.embedding_norm",
    attn_norm="operator_norm",
    out="out_proj",
    mlp_norm="ffn_norm",
    mlp="feed_forward",
    hybrid=True,
)
_JAMBA = replace(
    _LLAMA, final_norm="model.final_layernorm", mlp_norm="pre_ff_layernorm", mlp="feed_forward", hybrid=True
)

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5_moe_text", "qwen3_5_text"), _QWEN3_NEXT),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _text_path(_QWEN3_NEXT)),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _LFM2),
    **dict.fromkeys(("bamba", "jamba"), _JAMBA),
    "olmo_hybrid": replace(_OLMO2, hybrid=True),
    "granitemoehybrid": replace(_GRANITE, mlp=("block_sparse_moe", "shared_mlp"), hybrid=True),
    "granitemoeshared": replace(_GRANITE, mlp=("block_sparse_moe", "shared_mlp")),
    **dict.fromkeys(("arcee", "ernie4_5", "glm", "helium", "hunyuan_v1_dense", "mellum", "seed_oss"), _LLAMA),
    **dict.fromkeys(("aria_text", "cwm", "flint", "internlm3", "iquestcoder", "ministral", "ministral3"), _LLAMA),
    **dict.fromkeys(("dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "hunyuan_v1_moe", "solar_open"), _LLAMA),
    **dict.fromkeys(("exaone_moe", "hy_v3"), _LLAMA),
    **dict.fromkeys(("jais2", "phimoe", "stablelm"), replace(_LLAMA, norm="layer")),
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), _COHERE),
    **dict.fromkeys(("granite", "granite_swa"), _GRANITE),
    **dict.fromkeys(("granitemoe", "granitemoe_swa"), replace(_GRANITE, mlp="block_sparse_moe")),
    "nemotron": replace(_LLAMA, norm="layer+1"),
    "apertus": replace(_LLAMA, attn_norm="attention_layernorm", mlp_norm="feedforward_layernorm"),
    "exaone4": replace(_OLMO2, width_norms=None),
    "glm4": _GLM4,
    "kolibri1": _GLM4,
    "llama4_text": replace(_LLAMA, mlp="feed_forward"),
    "llama4": _text_path(replace(_LLAMA, mlp="feed_forward"), "language_model.model"),
    "minimax_m3_vl_text": replace(_LLAMA, norm="rms+1"),
    "phi": replace(_COHERE, final_norm="model.final_layernorm", out="dense"),
    "persimmon": replace(
        _LLAMA,
        final_norm="model.final_layernorm",
        norm="layer",
        qkv=("query_key_value",),
        fused="interleaved",
        out="dense",
    ),
    "vaultgemma": replace(_LLAMA, norm="rms+1", mlp_norm="pre_feedforward_layernorm"),
    "minimax_m2": replace(_LLAMA, width_norms=("q_norm", "k_norm")),
    # Vision-language models: their text path. The images' tokens have no probe pairs.
    **dict.fromkeys(("internvl", "llava", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"), _text_path(_LLAMA)),
    **dict.fromkeys(("aria", "glm4v_moe", "got_ocr2", "lighton_ocr", "llava_next"), _text_path(_LLAMA)),
    **dict.fromkeys(("deepseek_vl", "llava_onevision", "qwen3_vl_moe"), _text_path(_LLAMA)),
    **dict.fromkeys(("aya_vision", "cohere2_vision"), _text_path(_COHERE)),
    **dict.fromkeys(("idefics3", "smolvlm"), _text_path(_LLAMA, "model.text_model")),
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr"), _text_path(_GLM4)),
    "exaone4_5": _text_path(replace(_OLMO2, width_norms=None)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3_moe": _LLAMA,
    "starcoder2": replace(_LLAMA, norm="layer"),
    "phi3": replace(_LLAMA, qkv=("qkv_proj",), fused="stacked"),
    "gemma": replace(_LLAMA, norm="rms+1"),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": _text_path(_GEMMA),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "flex_olmo": _OLMO2,
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
    "gptj": Layout(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        norm="layer",
        attn_norm="ln_1",
        attention="attn",
        out="out_proj",
        mlp_norm="ln_1",
        parallel=True,
    ),
}

_NOT_ATTENTION = "some or all of its layers are recurrent or convolutional and have no attention heads to score"
_LATENT = "its heads read keys and values from a shared compressed vector after a norm of its own"
_POST_LN = "it normalises the residual stream itself after every block, so the stream is not a sum of outputs"
_PER_LAYER = "its layers differ in head width, and each adds an embedding of its own to the stream"
_NO_SCALE = "its norms have no weights"
_SEVERAL = "it mixes several residual streams, so none of them is a sum of the heads' and MLPs' outputs"

REFUSED: dict[str, str] = {
    **dict.fromkeys(["mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma"], _NOT_ATTENTION),
    **dict.fromkeys(["zamba", "zamba2", "nemotron_h"], _NOT_ATTENTION),
    "falcon_h1": "attention and a recurrent mixer run side by side in every layer",
    **dict.fromkeys(["deepseek_v2", "deepseek_v3"], _LATENT),
    **dict.fromkeys(["openai-gpt", "bert", "roberta"], _POST_LN),
    **dict.fromkeys(["gemma4", "gemma4_text"], _PER_LAYER),
    "paligemma": "its prompts attend in both directions",
    "olmo": _NO_SCALE,
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
