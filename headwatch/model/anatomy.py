"""Locate layers, heads, norms and projections in any supported architecture, wrapped by PEFT or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.errors import UnsupportedModelError
from headwatch.model.layouts import LAYOUTS, REFUSED, Layout, NormKind
from headwatch.model.parts import KINDS, Kind, Layer, Norm, Projection
from headwatch.model.placement import check_placement


@dataclass(frozen=True, repr=False)
class Anatomy:
    """The sources and targets of a causal language model.

    Attributes:
        model: the model as given, inside its PEFT wrapper if any: adapters are part of what is scored.
        layers: one `Layer` per decoder layer.
        decoder_layers: the decoder layers' modules.
        embedding: the token embedding module; integrated gradients interpolates its output.
        final_norm: the module whose input is the residual vector read by the logits.
        n_layers, n_heads, n_kv_heads, head_dim, d_model: L, H, K, D, M. Heads of a layer without attention
            (`Layer.whole`) have no edges, and their scores are 0; `layers_with_heads` lists the others.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    decoder_layers: tuple[nn.Module, ...]
    embedding: nn.Module
    final_norm: nn.Module
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int

    def __repr__(self) -> str:
        heads = f"{self.n_layers} layers x {self.n_heads} heads, {self.n_kv_heads} key/value heads"
        return f"Anatomy({type(self.model).__name__}: {heads}, head_dim {self.head_dim}, d_model {self.d_model})"

    @property
    def heads_per_kv(self) -> int:
        """Query heads per key/value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def has_whole_layers(self) -> bool:
        """Whether some layers have no attention heads; their state cannot be cut off after a shared prefix."""
        return any(layer.whole for layer in self.layers)

    @property
    def layers_with_heads(self) -> list[int]:
        """Indices of the layers that have attention heads."""
        return [index for index, layer in enumerate(self.layers) if not layer.whole]

    @property
    def first_with_heads(self) -> Layer:
        """The first layer that has attention heads."""
        return next(layer for layer in self.layers if not layer.whole)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the S = 1 + L(H + 1) sources: input, then each layer's heads and its MLP."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)] + [f"m{layer}"]
        return tuple(names)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the R = L(3H + 1) + 1 targets: each layer's q, k, v by head and its MLP, then the logits."""
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}.{kind}" for head in range(self.n_heads) for kind in KINDS] + [f"m{layer}"]
        return (*names, "logits")

    def head_source(self, layer: int) -> slice:
        """Rows of one layer's heads among the sources."""
        first = 1 + layer * (self.n_heads + 1)
        return slice(first, first + self.n_heads)

    def mlp_source(self, layer: int) -> int:
        """Row of one layer's MLP among the sources."""
        return (layer + 1) * (self.n_heads + 1)

    def attention_targets(self, layer: int) -> slice:
        """Columns of one layer's q, k, v among the targets: head by head, q, k, v within a head."""
        first = layer * (3 * self.n_heads + 1)
        return slice(first, first + 3 * self.n_heads)

    def mlp_target(self, layer: int) -> int:
        """Column of one layer's MLP among the targets."""
        return (layer + 1) * (3 * self.n_heads + 1) - 1

    def is_real(self) -> Tensor:
        """Which edges exist, bool [S, R].

        Attention reads earlier layers; an MLP also reads its own layer's heads, unless the two are parallel.
        """
        real = torch.zeros(len(self.sources), len(self.targets), dtype=torch.bool)
        for index, layer in enumerate(self.layers):
            heads = self.head_source(index)
            real[: heads.start, self.attention_targets(index)] = not layer.whole
            real[: heads.start if layer.parallel else heads.stop, self.mlp_target(index)] = True
        real[:, -1] = True
        for index, layer in enumerate(self.layers):
            if layer.whole:
                real[self.head_source(index)] = False
        return real

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        """Find the parts of a Hugging Face causal language model: plain, compiled, or wrapped by PEFT.

        Args:
            model: the model.

        Raises:
            UnsupportedModelError: the architecture is unknown or not a sum of its parts, or a part is missing.
        """
        model = _bare(model)
        check_placement(model)
        _refuse_added_tokens(model)
        wrapper: Any = model
        inner: Any = _bare(wrapper.get_base_model()) if hasattr(wrapper, "get_base_model") else model
        config = getattr(inner, "config", None)
        model_type = getattr(config, "model_type", None)
        if model_type not in LAYOUTS or config is None:
            reason = REFUSED.get(str(model_type), "headwatch has no layout for it")
            if getattr(config, "is_encoder_decoder", False):
                reason = "it is an encoder-decoder, and headwatch scores decoder-only models"
            name = getattr(config, "_name_or_path", "") or "MODEL"
            raise UnsupportedModelError(
                f"model: {type(inner).__name__} (config.model_type {model_type!r}) is not supported: {reason}; "
                f"`headwatch doctor {name}` looks for a layout entry (list: docs/reference/models.md)"
            )
        if inner.get_output_embeddings() is None:
            raise UnsupportedModelError(
                f"model: {type(inner).__name__} has no output matrix over the vocabulary, so no metric can be read "
                "from its tokens; headwatch scores causal language models"
            )
        layout = LAYOUTS[model_type]
        config = config.get_text_config()
        for option, values, reason in (
            ("use_bidirectional_attention", (True, "all"), "attends in both directions"),
            ("clip_qkv", (), "clips its queries, keys and values in place"),
        ):
            value = getattr(config, option, None)
            if value in values or (not values and value is not None):
                raise UnsupportedModelError(
                    f"model: {type(inner).__name__} {reason} (config.{option}={value!r}), which is not supported"
                )
        n_heads = config.num_attention_heads
        n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
        decoder_layers = tuple(_find(inner, layout.layers, model_type))
        _refuse_fused_lora(decoder_layers)
        layers = tuple(
            _layer(_Finder(layer, layout, model_type, f"{layout.layers}.{index}."), (n_heads, n_kv_heads, head_dim))
            for index, layer in enumerate(decoder_layers)
        )
        if all(layer.whole for layer in layers):
            raise UnsupportedModelError(
                f"model: a {model_type} model should have {layout.layers}.*.{layout.attention} in some layers, "
                f"but {type(inner).__name__} has none"
            )
        return cls(
            model=model,
            layers=layers,
            decoder_layers=decoder_layers,
            embedding=inner.get_input_embeddings(),
            final_norm=_find(inner, layout.final_norm, model_type),
            n_layers=len(layers),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            d_model=config.hidden_size,
        )


@dataclass(frozen=True)
class _Finder:
    """Looks up the parts of one decoder layer by the names in its layout."""

    module: nn.Module
    layout: Layout
    model_type: str
    prefix: str

    def part(self, path: str) -> Any:
        return _find(self.module, path, self.model_type, self.prefix)

    def parts(self, paths: str | tuple[str, ...]) -> tuple[nn.Module, ...]:
        """The module at a path; of several paths, those that the layer has."""
        if isinstance(paths, str):
            return (self.part(paths),)
        return tuple(self.part(path) for path in paths if getattr(self.module, path, None) is not None)

    def norm(self, path: str | None, kind: NormKind | None = None) -> Norm | None:
        if path is None:
            return None
        module = self.part(path)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if eps is None:
            raise UnsupportedModelError(
                f"model: {type(module).__name__} at {self.prefix}{path} has no epsilon "
                "(looked for variance_epsilon and eps), so its exact gradient is unknown"
            )
        return Norm(module, eps, kind or self.layout.norm)


def _layer(find: _Finder, shape: tuple[int, int, int]) -> Layer:
    layout = find.layout
    if layout.hybrid and getattr(find.module, layout.attention, None) is None:
        one, none = find.module, nn.Identity()
        return Layer(none, None, (), none, None, one, one, (one,), parallel=True, whole=True)
    widths: Sequence[str | None] = (*(layout.width_norms or (None, None)), None)
    kinds: list[tuple[Kind, ...]] = [KINDS] if layout.fused else [("q",), ("k",), ("v",)]
    projections = []
    for path, made, width in zip(layout.qkv, kinds, widths, strict=False):
        norm = find.norm(None if width is None else f"{layout.attention}.{width}")
        projections.append(Projection(find.part(f"{layout.attention}.{path}"), made, layout.fused, norm, *shape))
    mlps = find.parts(layout.mlp)
    mlp_post_norm = find.norm(layout.mlp_post_norm)
    shared = layout.mlp_norm is not None and layout.mlp_norm == layout.attn_norm
    return Layer(
        attention=find.part(layout.attention),
        attn_norm=find.norm(layout.attn_norm),
        projections=tuple(projections),
        out=find.part(f"{layout.attention}.{layout.out}"),
        attn_post_norm=find.norm(layout.attn_post_norm),
        mlp_reads=mlps[0] if layout.mlp_norm is None or shared else find.part(layout.mlp_norm),
        mlp=mlps[0],
        mlp_adds=mlps if mlp_post_norm is None else (mlp_post_norm.module,),
        multiplier=1.0 if layout.multiplier is None else float(find.part(layout.multiplier)),
        parallel=bool(find.part(layout.parallel)) if isinstance(layout.parallel, str) else layout.parallel,
        shared_norm=shared,
    )


def _find(root: nn.Module, path: str, model_type: str, prefix: str = "") -> Any:
    found: Any = root
    for name in path.split("."):
        found = _bare(getattr(found, name, None))
        if found is None:
            raise UnsupportedModelError(
                f"model: a {model_type} model should have {prefix}{path}, but {type(root).__name__} has none"
            )
    return found


def _bare(module: Any) -> Any:
    """The module inside torch.compile's wrapper, or the module itself."""
    return module._modules["_orig_mod"] if "_orig_mod" in getattr(module, "_modules", ()) else module


def _refuse_added_tokens(model: nn.Module) -> None:
    """Refuse PEFT's prompt learning, which adds tokens before the prompt or inside every layer."""
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False) or getattr(config, "is_adaption_prompt", False):
        kind = getattr(getattr(config, "peft_type", None), "value", None)
        raise UnsupportedModelError(
            f"model: the active adapter ({kind}) adds its own tokens to every prompt, which shifts the "
            "positions of the probe pairs; score model.get_base_model(), or train LoRA, DoRA or IA3 instead"
        )


def _refuse_fused_lora(decoder_layers: Sequence[nn.Module]) -> None:
    """Refuse Unsloth's attention, whose fused LoRA computes o_proj and the others without calling these modules."""
    for layer in decoder_layers:
        for module in layer.modules():
            own = vars(module)
            patched = [getattr(module.forward, "__func__", module.forward), own.get("apply_o"), own.get("apply_qkv")]
            if any(str(getattr(function, "__module__", "")).startswith("unsloth") for function in patched):
                raise UnsupportedModelError(
                    "model: Unsloth has replaced its attention by fused kernels that do not call q_proj, k_proj, "
                    "v_proj and o_proj, so no head can be located; train with transformers or TRL alone to watch heads"
                )
