"""Gradients at the copies of the residual vector that one layer's queries, keys and values read (head_space.py)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from headwatch.attribution.head_space import head_gradients
from headwatch.attribution.run_layout import RunLayout
from headwatch.attribution.tensor_pool import Piece
from headwatch.model.linear_map import linear_map
from headwatch.model.parts import Kind, Layer, Norm
from headwatch.model.precision import at_least_float32


@dataclass
class AttentionReads:
    """What one attention layer read in a forward pass, and its gradients. Shapes are those of stacked runs."""

    x: Tensor | None = None  # the residual vector before the norm, [m B, T, M]
    y: dict[Kind, Tensor] = field(default_factory=dict)  # projection outputs, [m B, T, (heads D)]
    grads: dict[Kind, Tensor] = field(default_factory=dict)  # gradients at each query head's copy, [m B, T, (H D)]


@dataclass(frozen=True)
class RankOneTerms:
    """Terms to subtract from the gradients of successive targets: a number per target times a vector per token.

    Attributes:
        numbers: [m B, T, R''].
        vectors: [m B, T, M].
        first: the first of these targets in its block.
    """

    numbers: Tensor
    vectors: Tensor
    first: int


_Scales = dict[int, tuple[Tensor, Tensor]]
"""id of a scale -> the scale [m B, T, 1], and the same by token, [B T, 1, m]."""


def attention_gradients(
    layer: Layer, reads: AttentionReads, layout: RunLayout, rows: list[Tensor], where: list[Piece], first: int
) -> list[RankOneTerms]:
    """Sum the gradients over the points, and write them without their terms of rank one.

    Args:
        layer: the layer.
        reads: what it read, and its gradients.
        layout: of the points' runs.
        rows: receive the gradients of all q, all k, all v: pieces of [3 H, B T, M].
        where: the pieces' tokens.
        first: the first of these targets in its block.

    Returns:
        Terms to subtract from the rows.
    """
    n_heads, d_model = len(rows[0]) // 3, rows[0].shape[-1]
    norm, x, r = layer.attn_norm, None, None
    if norm is not None:
        assert reads.x is not None
        x = norm.centre(at_least_float32(reads.x))
        r = norm.inverse_scale(x)  # [m B, T, 1]
    r_over_width = None if r is None else r / d_model
    scales: _Scales = {}
    terms: list[RankOneTerms] = []
    sums, matrices, along_input = [], [], []
    for place, (kind, width_norm, matrix, bias) in enumerate(_maps(layer, norm, d_model)):
        grads, y = at_least_float32(reads.grads[kind]), reads.y[kind]
        found = head_gradients(grads, y, matrix, bias, n_heads, norm, r, r_over_width, width_norm)
        sums.append(_sum_over_points(layout, grads, found.scale, scales).unflatten(-1, (n_heads, -1)))  # [B T, H, D]
        matrices.append(found.matrices)
        if found.along_width is not None and found.width_vector is not None:
            terms.append(RankOneTerms(found.along_width, found.width_vector, first + place * n_heads))
        if found.along_input is not None:
            along_input.append(found.along_input)
    width = max(own.shape[-1] for own in sums)  # a query may carry a gate
    if any(own.shape[-1] != width for own in sums):
        sums = [F.pad(own, (0, width - own.shape[-1])) for own in sums]
        matrices = [F.pad(own, (0, 0, 0, width - own.shape[1])) for own in matrices]
    multiply_per_head(torch.cat(sums, 1), torch.cat(matrices), rows, where)
    if x is not None and r is not None:
        terms.append(RankOneTerms(torch.cat(along_input, -1), x * r, first))
    return terms


def outputs_of_heads(layer: Layer, z: Tensor, out: list[Tensor], where: list[Piece]) -> None:
    """Write what every head adds to the residual stream, from its output z [B T, H D], to pieces of [H, B T, M]."""
    n_heads = len(out[0])
    matrix, _ = linear_map(layer.out, z.shape[-1])
    per_head = layer.scaled(matrix.T).unflatten(0, (n_heads, -1))  # [H, D, M]
    multiply_per_head(z.unflatten(-1, (n_heads, -1)), per_head, out, where)


def multiply_per_head(vectors: Tensor, matrices: Tensor, out: list[Tensor], where: list[Piece]) -> None:
    """Write every head's vectors [B T, H, D] times its matrix [H, D, M] to pieces of [H, B T, M]."""
    for piece, own in zip(where, out, strict=True):
        torch.bmm(vectors[piece.tokens].transpose(0, 1), matrices, out=own)


def _sum_over_points(layout: RunLayout, grads: Tensor, scale: Tensor | None, scales: _Scales) -> Tensor:
    """Sum of the points' gradients, each times its scale: [m B, T, W], [m B, T, 1] -> [B T, W].

    `scales` keeps a scale by token for further calls with the same one.
    """
    grads = layout.by_token(grads)
    if scale is None:
        return grads.sum(1)
    if id(scale) not in scales:  # contiguous: one batched product; the scale is kept, so its id stays its own
        scales[id(scale)] = scale, layout.by_token(scale).mT.contiguous()
    return torch.bmm(scales[id(scale)][1], grads)[:, 0]


def _maps(layer: Layer, norm: Norm | None, width: int) -> Iterator[tuple[Kind, Norm | None, Tensor, Tensor]]:
    """For q, k and v: the norm after the projection, the matrix [out, M], and the output at xhat = 0, [out]."""
    for projection in layer.projections:
        matrix, bias = linear_map(projection.module, width)
        if norm is not None and norm.bias is not None:
            bias = bias + matrix @ norm.bias
        for kind in projection.kinds:
            rows = projection.rows(kind, device=matrix.device)
            yield kind, projection.norm, matrix[rows], bias[rows]
