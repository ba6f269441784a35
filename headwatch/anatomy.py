"""Where layers, heads, norms and projections are, in any supported architecture, wrapped by PEFT or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headwatch.errors import UnsupportedModelError

Kind = Literal["q", "k", "v"]
KINDS: tuple[Kind, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Layout:
    """What the parts of one architecture are called, relative to a decoder layer. The defaults are Llama's.

    To add an architecture, add an entry to `LAYOUTS` under its `config.model_type` that names what differs; the tests
    in tests/attribution/ then check it against the naive reference.
    """

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    attn_norm: str = "input_layernorm"
    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    out: str = "o_proj"
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(),
    "mistral": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(),  # its q/k norms act on one head at a time, behind the projections: nothing to say here
}


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm: y = w * x / sqrt(mean(x^2) + eps)."""

    module: nn.Module
    eps: float

    @property
    def weight(self) -> Tensor:
        """Scale, [M], float32 or wider."""
        return _wide(self.module.get_parameter("weight").detach())

    def inverse_scale(self, x: Tensor) -> Tensor:
        """r = 1 / rms(x): [..., M] -> [..., 1]."""
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@dataclass(frozen=True)
class Layer:
    """The parts of one decoder layer that the attribution pass touches."""

    attention: nn.Module
    attn_norm: Norm
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module  # o_proj: its input is all heads' z, side by side, [..., H * D]
    mlp_norm: nn.Module  # its input is the residual vector that the MLP reads
    mlp: nn.Module  # its output is what the MLP adds to the residual stream

    def projection(self, kind: Kind) -> nn.Module:
        """The module that makes this layer's queries, keys or values."""
        return {"q": self.q, "k": self.k, "v": self.v}[kind]


@dataclass(frozen=True)
class Anatomy:
    """A causal language model taken apart into the sources and targets of attribution.md.

    Attributes:
        model: the model as given (a PEFT wrapper stays on: its adapters are part of what is scored).
        layers: one `Layer` for each decoder layer.
        embedding: the token embedding module; its output is what integrated gradients interpolates.
        final_norm: its input is the residual vector that the logits read.
        n_layers, n_heads, n_kv_heads, head_dim, d_model: L, H, K, D, M.
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

    @property
    def heads_per_kv(self) -> int:
        """How many query heads read one key/value head."""
        return self.n_heads // self.n_kv_heads

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
        """Which edges exist, bool [S, R]: attention reads earlier layers, an MLP its own layer's heads as well."""
        real = torch.zeros(len(self.sources), len(self.targets), dtype=torch.bool)
        for layer in range(self.n_layers):
            real[: self.head_source(layer).start, self.attention_targets(layer)] = True
            real[: self.head_source(layer).stop, self.mlp_target(layer)] = True
        real[:, -1] = True
        return real

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        """Find the parts of a Hugging Face causal language model, plain or wrapped by PEFT.

        Raises:
            UnsupportedModelError: the architecture is unknown, or a part that it should have is not where it should be.
        """
        inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = getattr(inner, "config", None)
        model_type = getattr(config, "model_type", None)
        if model_type not in LAYOUTS:
            raise UnsupportedModelError(
                f"model: {type(inner).__name__} has model_type {model_type!r}, which headwatch cannot take apart yet; "
                f"supported: {', '.join(sorted(LAYOUTS))} (Anatomy looks for model.config.model_type)"
            )
        layout = LAYOUTS[model_type]
        decoder_layers = tuple(_find(inner, layout.layers, model_type))
        layers = tuple(_layer(layer, layout, model_type, index) for index, layer in enumerate(decoder_layers))
        n_heads = config.num_attention_heads
        n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
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


def _layer(module: nn.Module, layout: Layout, model_type: str, index: int) -> Layer:
    def find(path: str) -> Any:
        return _find(module, path, model_type, f"{layout.layers}.{index}.")

    attention = find(layout.attention)
    norm = find(layout.attn_norm)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None:
        raise UnsupportedModelError(
            f"model: {type(norm).__name__} at {layout.layers}.{index}.{layout.attn_norm} has no epsilon "
            "(looked for variance_epsilon and eps), so its exact gradient is unknown"
        )
    return Layer(
        attention=attention,
        attn_norm=Norm(norm, eps),
        q=find(f"{layout.attention}.{layout.q}"),
        k=find(f"{layout.attention}.{layout.k}"),
        v=find(f"{layout.attention}.{layout.v}"),
        out=find(f"{layout.attention}.{layout.out}"),
        mlp_norm=find(layout.mlp_norm),
        mlp=find(layout.mlp),
    )


def _find(root: nn.Module, path: str, model_type: str, prefix: str = "") -> Any:
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise UnsupportedModelError(
                f"model: a {model_type} model should have {prefix}{path}, but {type(root).__name__} has none"
            )
    return found


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: scores are accumulated there whatever the model's dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@torch.no_grad()
def linear_map(module: nn.Module, d_in: int) -> tuple[Tensor, Tensor]:
    """The effective weight [out, in] and bias [out] of a module that acts as one linear map, in float32 or wider.

    A plain nn.Linear gives its own; anything else (LoRA, a quantised layer) is asked for its image of the identity,
    so that base weight and adapters come out as one, exactly as the forward pass uses them.
    """
    if type(module) is nn.Linear:
        weight = _wide(module.weight.detach())
        return weight, weight.new_zeros(len(weight)) if module.bias is None else _wide(module.bias.detach())
    like = next(p for p in module.parameters() if p.is_floating_point())
    basis = torch.eye(d_in, dtype=like.dtype, device=like.device)
    bias = module.forward(torch.zeros_like(basis[:1]))[0]  # .forward: hooks on the module are for the pass alone
    return _wide(module.forward(basis) - bias).T.contiguous(), _wide(bias)


def head_names(heads: Sequence[tuple[int, int]]) -> list[str]:
    """(layer, head) pairs as source names: (5, 1) -> "a5.h1"."""
    return [f"a{layer}.h{head}" for layer, head in heads]
