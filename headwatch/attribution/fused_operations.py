"""The operations of a pass as fused kernels (headwatch/kernels), where a kernel fits; elsewhere the plain ones."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.attribution.attention_gradients import AttentionReads, RankOneTerms
from headwatch.attribution.operations import Operations
from headwatch.attribution.run_layout import RunLayout
from headwatch.attribution.tensor_pool import Piece
from headwatch.kernels.launch import DTYPES, require_kernels
from headwatch.kernels.model_ops import AfterPrefix
from headwatch.kernels.model_parts import after_prefix_fits, fused_parts
from headwatch.kernels.score_ops import (
    add_head_scores,
    add_squares,
    difference,
    expand_head_space,
    expand_outputs,
    head_space,
)
from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import has_own_forward
from headwatch.model.linear_map import linear_map
from headwatch.model.parts import KINDS, Kind, Layer


class FusedModel(Operations):
    """Kernels for the model's own parts: norms, gated MLPs, rotary embeddings, and the prefix's keys and values."""

    def model_parts(self, model: nn.Module) -> AbstractContextManager[object]:
        """The model's known parts run as kernels inside the block."""
        return fused_parts(model)

    def repeats_heads(self, anatomy: Anatomy) -> bool:
        """For the attention functions that repeat them otherwise, as many times as their module has groups."""
        config: Any = getattr(anatomy.model, "config", None)
        groups = {getattr(layer.attention, "num_key_value_groups", None) for layer in anatomy.layers}
        return groups == {anatomy.heads_per_kv} and getattr(config, "_attn_implementation", None) in ("eager", "sdpa")

    def after_prefix(
        self, prefix: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, copies: int, heads: int | None
    ) -> tuple[Tensor, Tensor]:
        """All copies in one kernel."""
        if after_prefix_fits(*prefix, keys, values):
            joined: tuple[Tensor, Tensor] = AfterPrefix.apply(*prefix, keys, values, heads or keys.shape[1])
            return joined
        joined = super().after_prefix(prefix, keys, values, copies, heads)
        if heads is None:
            return joined
        keys, values = (each.repeat_interleave(heads // each.shape[1], 1) for each in joined)
        return keys, values


class FusedScores(Operations):
    """Kernels for what the scores are summed from; everything is accumulated in float32."""

    def difference(self, corrupted: Tensor, clean: Tensor, scale: float) -> Tensor:
        """One kernel, where no copy is needed first."""
        fits = _fits(corrupted, clean) and corrupted.is_contiguous() and clean.is_contiguous()
        return difference(corrupted, clean, scale) if fits else super().difference(corrupted, clean, scale)

    def add_squares(self, states: Sequence[Tensor], scales: Sequence[float], out: Tensor) -> None:
        """One kernel for all three states of a layer."""
        if out.dtype == torch.float32 and _fits(*states) and all(each.is_contiguous() for each in (*states, out)):
            add_squares(states, scales, out)
        else:
            super().add_squares(states, scales, out)

    def add_head_scores(self, gradients: Tensor, difference: Tensor, scores: Tensor) -> None:
        """One kernel."""
        if scores.dtype == torch.float32 and _fits(gradients, difference):
            add_head_scores(gradients, difference, scores)
        else:
            super().add_head_scores(gradients, difference, scores)

    def outputs_of_heads(self, layer: Layer, z: Tensor, out: list[Tensor], where: list[Piece]) -> None:
        """One kernel per piece."""
        matrix, _ = _raw_linear_map(layer.out, z.shape[-1])
        if layer.attn_post_norm is not None or layer.multiplier != 1.0 or not _fits(z, out[0], matrix):
            super().outputs_of_heads(layer, z, out, where)
            return
        for piece, own in zip(where, out, strict=True):
            expand_outputs(z[piece.tokens], matrix, len(own), own)

    def attention_gradients(
        self,
        layer: Layer,
        reads: AttentionReads,
        layout: RunLayout,
        rows: list[Tensor],
        where: list[Piece],
        first: int,
    ) -> list[RankOneTerms]:
        """Two kernels for the sums, and one per piece that writes the rows with their terms of rank one."""
        maps = _maps_of(layer, reads, rows[0])
        if maps is None:
            return super().attention_gradients(layer, reads, layout, rows, where, first)
        norm, x = layer.attn_norm, reads.x
        assert norm is not None
        assert x is not None
        matrices, biases = maps
        gradients, outputs = ([layout.by_run(own[kind]) for kind in KINDS] for own in (reads.grads, reads.y))
        space = head_space(gradients, outputs, biases, layout.by_run(x), norm.eps, len(rows[0]) // 3)
        weight = norm.weight if norm.kind.endswith("+1") else norm.module.get_parameter("weight").detach()
        for piece, own in zip(where, rows, strict=True):
            expand_head_space(space, matrices, weight, piece.tokens.start, own)
        return []


class Fused(FusedModel, FusedScores):
    """All kernels."""


PARTS = ("model", "scores")
"""Groups of kernels, each of which can be used without the other."""


def operations_of(parts: Collection[str]) -> Operations:
    """The operations of a pass in which these parts run as kernels."""
    kinds = {(): Operations, ("model",): FusedModel, ("scores",): FusedScores, PARTS: Fused}
    return kinds[tuple(part for part in PARTS if part in parts)]()


def required_parts(kernels: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The parts that `ScoringSettings.kernels` asks for without a trial (kernel_trial.py).

    Args:
        kernels: "auto", "torch" or "triton".
        device, dtype: of the model.

    Raises:
        UserError: kernels="triton", and this model cannot use them.
    """
    if kernels != "triton":
        return ()
    require_kernels(device, dtype)
    return PARTS


def _fits(*tensors: Tensor) -> bool:
    return all(each.dtype in DTYPES for each in tensors)


def _maps_of(layer: Layer, reads: AttentionReads, rows: Tensor) -> tuple[list[Tensor], list[Tensor | None]] | None:
    """The matrices and biases of q, k and v; None where the kernels do not compute this layer's gradients.

    They know RMSNorm before attention, no norm over the full width of a projection, and queries of one width with keys
    and values.
    """
    norm = layer.attn_norm
    if norm is None or norm.kind.startswith("layer") or norm.bias is not None or reads.x is None:
        return None
    if any(projection.norm is not None for projection in layer.projections):
        return None
    if len({own.shape[-1] for own in reads.grads.values()}) > 1:  # a query carries a gate
        return None
    if not _fits(rows, reads.x, *reads.grads.values(), *reads.y.values()) or rows.dtype != torch.float32:
        return None
    matrices: dict[Kind, Tensor] = {}
    biases: dict[Kind, Tensor | None] = {}
    for projection in layer.projections:
        matrix, bias = _raw_linear_map(projection.module, rows.shape[-1])
        for kind in projection.kinds:
            own = projection.rows(kind, device=matrix.device)
            matrices[kind], biases[kind] = matrix[own], None if bias is None else bias[own]
    found = [matrices[kind] for kind in KINDS]
    if len({each.dtype for each in found}) > 1:  # adapters on some of them: float32
        found = [each.float() for each in found]
    return (found, [biases[kind] for kind in KINDS]) if _fits(*found) else None


def _raw_linear_map(module: nn.Module, d_in: int) -> tuple[Tensor, Tensor | None]:
    """`linear_map` without a cast: the kernels read the weights' own dtype. None: no bias."""
    if type(module) is nn.Linear and not has_own_forward(module):
        weight = module.weight.detach()
        return weight, None if module.bias is None else module.bias.detach()
    return linear_map(module, d_in)
