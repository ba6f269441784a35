"""The parts of a decoder layer: norms, projections to queries, keys and values, and the layer as the pass uses it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from headwatch.model.layouts import Fused, NormKind
from headwatch.model.precision import at_least_float32

Kind = Literal["q", "k", "v"]
KINDS: tuple[Kind, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Norm:
    """A norm y = w * xhat + b with xhat = x r and r = 1 / sqrt(mean(x^2) + eps); LayerNorm centres x first."""

    module: nn.Module
    eps: float
    kind: NormKind = "rms"

    @property
    def weight(self) -> Tensor:
        """w, [M], float32 or wider."""
        weight = at_least_float32(self.module.get_parameter("weight").detach())
        return 1 + weight if self.kind.endswith("+1") else weight

    @property
    def bias(self) -> Tensor | None:
        """b, [M], float32 or float64; None if the norm has no bias."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else at_least_float32(bias.detach())

    def centre(self, x: Tensor) -> Tensor:
        """x - mean(x) for a LayerNorm, x as it is for the others, [..., M]."""
        return x - x.mean(-1, keepdim=True) if self.kind.startswith("layer") else x

    def inverse_scale(self, centred: Tensor) -> Tensor:
        """r of the output of `centre`: [..., M] -> [..., 1]."""
        return torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)


@dataclass(frozen=True)
class Projection:
    """A linear map from attention's input to the queries, keys or values of all heads, or to all three.

    Attributes:
        module: the linear map.
        kinds: what it computes.
        fused: the order of its output rows if it computes all three (see `Layout`).
        norm: a norm over its full output, applied before the split into heads (OLMo 2).
        n_heads, n_kv_heads, head_dim: H, K, D.
    """

    module: nn.Module
    kinds: tuple[Kind, ...]
    fused: Fused | None
    norm: Norm | None
    n_heads: int
    n_kv_heads: int
    head_dim: int

    def heads_of(self, kind: Kind) -> int:
        """Number of heads of one kind. A query may be wider than D: a gate of the head's output follows it."""
        return self.n_heads if kind == "q" else self.n_kv_heads

    @property
    def last(self) -> nn.Module:
        """The module whose output is split into heads: the norm after the projection, or the projection."""
        return self.module if self.norm is None else self.norm.module

    def rows(self, kind: Kind, copied: bool = False, device: torch.device | None = None) -> slice | Tensor:
        """Indices of one kind in the output of `last`, head by head; or in the output of `copy_heads`, if `copied`.

        On `device` where they are a tensor.
        """
        if self.fused is None:
            return slice(None)
        if self.fused == "interleaved":
            count = 3 * self.n_heads * self.head_dim
            places = torch.arange(count, device=device).unflatten(0, (self.n_heads, 3, self.head_dim))
            return places[:, KINDS.index(kind)].flatten()
        queries = self.n_heads * self.head_dim
        keys = queries if copied else self.n_kv_heads * self.head_dim
        first = {"q": 0, "k": queries, "v": queries + keys}[kind]
        return slice(first, first + (queries if kind == "q" else keys))

    def copy_heads(self, output: Tensor) -> Tensor:
        """Repeat keys and values so that every query head has its own copy: [..., out] -> [..., out']."""
        if self.kinds == ("q",) or self.n_heads == self.n_kv_heads:
            return output
        if self.fused is None:
            return self._repeat(output)
        q, k, v = (output[..., self.rows(kind)] for kind in KINDS)
        return torch.cat([q, self._repeat(k), self._repeat(v)], -1)

    def join(self, states: dict[Kind, Tensor]) -> Tensor:
        """Join states [..., H, D] of each kind in the order of `copy_heads`: [..., out']."""
        if self.fused == "interleaved":
            return torch.stack([states[kind] for kind in KINDS], -2).flatten(-3)
        return torch.cat([states[kind].flatten(-2) for kind in self.kinds], -1)

    def _repeat(self, states: Tensor) -> Tensor:
        by_head = states.unflatten(-1, (self.n_kv_heads, 1, self.head_dim))
        return by_head.expand(*by_head.shape[:-2], self.n_heads // self.n_kv_heads, self.head_dim).flatten(-3)


@dataclass(frozen=True)
class Layer:
    """The parts of one decoder layer that the attribution pass uses.

    Attributes:
        attention: the attention module.
        attn_norm: the norm before attention; None if attention reads the residual vector directly.
        projections: the modules that compute queries, keys and values: three, or one.
        out: o_proj; its input is the concatenated z of all heads, [..., H * D].
        attn_post_norm: the norm after o_proj, if any.
        mlp_reads: the module whose input is the residual vector read by the MLP: the norm before it, or the MLP;
            or, if attention and MLP share a norm, the MLP, whose input is the output of that norm.
        shared_norm: whether the MLP reads the output of `attn_norm`.
        whole: whether the layer has no attention heads: mixer and MLP are one node, m{l}, which reads its input. Then
            `mlp` is the decoder layer itself, and `attention` and `out` are modules that are never called.
        mlp: the MLP, or the expert block.
        mlp_adds: the modules whose outputs, summed and times `multiplier`, the MLP adds to the residual stream.
        multiplier: scales what attention and MLP add to the stream.
        parallel: whether the MLP reads the input of attention instead of the stream after attention.
    """

    attention: nn.Module
    attn_norm: Norm | None
    projections: tuple[Projection, ...]
    out: nn.Module
    attn_post_norm: Norm | None
    mlp_reads: nn.Module
    mlp: nn.Module
    mlp_adds: tuple[nn.Module, ...]
    multiplier: float = 1.0
    parallel: bool = False
    shared_norm: bool = False
    whole: bool = False

    def scaled(self, out: Tensor) -> Tensor:
        """o_proj's output as it enters the stream, [..., M], without the post-norm's 1 / rms, which varies by token."""
        if self.attn_post_norm is not None:
            out = out * self.attn_post_norm.weight
        return out if self.multiplier == 1.0 else out * self.multiplier
