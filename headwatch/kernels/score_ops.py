"""Sums of a pass as one kernel each; the plain operations are in headwatch/attribution, and tests compare both.

Gradients are given by run, [n, B, T, W], with any strides but a contiguous last dimension, as `RunLayout.by_run` views
them. Everything is accumulated in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwatch.kernels.launch import BLOCK as _BLOCK
from headwatch.kernels.launch import blocks, launch, power_of_two

PRECISION = "tf32x3"
"""Of float32 products in `expand`: three TF32 products, whose error is that of float32 (test_product_precision.py)."""


def _rows(states: Tensor) -> Tensor:
    return states if states.stride(-1) == 1 else states.contiguous()


def add_head_scores(gradients: Tensor, difference: Tensor, out: Tensor) -> None:
    """out[b, h] += sum over t, d of difference * (sum over runs of gradients).

    Args:
        gradients: at the input of o_proj, [n, B, T, H D].
        difference: corrupted - clean of that input, float32 [B, T, H D].
        out: float32 [B, H], any strides.
    """
    gradients, difference = _rows(gradients), _rows(difference)
    runs, pairs, length, _ = gradients.shape
    heads = out.shape[1]
    width = gradients.shape[-1] // heads
    strides = [*gradients.stride()[:3], *difference.stride()[:2], *out.stride()]
    block = power_of_two(width)
    rows = max(1, min(power_of_two(length), 4096 // block))
    arguments = [gradients, difference, out, runs, length, width, *strides]
    launch("head_scores", (pairs, heads), arguments, BLOCK_T=rows, BLOCK=block)


def difference(corrupted: Tensor, clean: Tensor, scale: float) -> Tensor:
    """(corrupted - clean) * scale, float32."""
    corrupted, clean = corrupted.contiguous(), clean.contiguous()
    out = torch.empty_like(corrupted, dtype=torch.float32)
    size = out.numel()
    launch("difference", (-(-size // _BLOCK),), [corrupted, clean, out, scale, size], BLOCK=_BLOCK)
    return out


def add_squares(states: Sequence[Tensor], scales: Sequence[float], out: Tensor) -> None:
    """out += sum over states of scale * states^2, up to three states per kernel.

    Args:
        states: any floating dtypes, contiguous, all of the shape of `out`.
        scales: one number per state.
        out: float32, contiguous.
    """
    size = out.numel()
    for first in range(0, len(states), 3):
        own, factors = list(states[first : first + 3]), list(scales[first : first + 3])
        missing = 3 - len(own)
        arguments = [*own, *[out] * missing, *factors, *[0.0] * missing, out, size]
        launch("add_squares", (-(-size // _BLOCK),), arguments, STATES=len(own), BLOCK=_BLOCK)


@dataclass(frozen=True)
class HeadSpace:
    """The gradients of one layer's queries, keys and values, summed over runs in head space (head_space.py).

    Attributes:
        sums: A_h of q, k and v, [3, H, B T, D].
        along: numbers along x, r c_h, [n, B T, 3 H].
        x: the residual vector by run, [n, B, T, M].
    """

    sums: Tensor
    along: Tensor
    x: Tensor


def head_space(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    eps: float,
    heads: int,
) -> HeadSpace:
    """Sum the gradients at each query head's copies of q, k and v over runs, with the Jacobian of RMSNorm.

    Args:
        gradients: of q, k, v, each [n, B, T, H D].
        outputs: of the projections to q, k, v: [n, B, T, H D], and [n, B, T, K D] twice.
        biases: their outputs at x = 0, any dtype: [H D], and [K D] twice; None: 0.
        x: the residual vector, [n, B, T, M].
        eps: of the norm.
        heads: H.
    """
    gradients, outputs, x = [_rows(g) for g in gradients], [_rows(y) for y in outputs], _rows(x)
    runs, pairs, length, d_model = x.shape
    tokens, width = pairs * length, gradients[0].shape[-1] // heads
    r = x.new_empty(runs, tokens, dtype=torch.float32)
    at_once, block = blocks(runs * tokens, d_model)
    arguments = [x, r, runs * tokens, pairs, length, d_model, eps, *x.stride()[:3]]
    launch("inverse_rms", (-(-runs * tokens // at_once),), arguments, ROWS=at_once, BLOCK=block)
    sums, along = r.new_empty(3, heads, tokens, width), r.new_empty(runs, tokens, 3 * heads)
    group = heads * width // outputs[1].shape[-1]
    strides = [stride for each in (*gradients, *outputs) for stride in each.stride()[:3]]
    sizes = [runs, pairs, length, heads, group, d_model, width]
    nothing = [r if bias is None else bias.contiguous() for bias in biases]  # a pointer that is not read
    arguments = [*gradients, *outputs, *nothing, r, sums, along, *sizes, *strides]
    at_once, block = blocks(tokens * heads, width)
    given = {f"BIAS_{kind}": bias is not None for kind, bias in zip("QKV", biases, strict=True)}
    launch("head_space", (-(-tokens * heads // at_once),), arguments, **given, ROWS=at_once, BLOCK=block)
    return HeadSpace(sums, along, x)


def expand_head_space(space: HeadSpace, matrices: Sequence[Tensor], weight: Tensor, first: int, rows: Tensor) -> None:
    """Write the gradients at the copies of the residual vector, before the norm, of some tokens.

    Args:
        space: the sums in head space.
        matrices: of q, k, v: [H D, M], and [K D, M] twice, one dtype.
        weight: of the norm, any dtype, [M].
        first: the first of these tokens among all B T.
        rows: float32 [3 H, tokens, M], contiguous.
    """
    kinds, heads, all_tokens, width = space.sums.shape
    runs, _, length, d_model = space.x.shape
    tokens = rows.shape[1]
    (q, k, v), group = matrices, heads * width // matrices[1].shape[0]
    if k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    of_q, of_k = ((width * m.stride(0), m.stride(0), m.stride(1)) for m in (q, k))
    a = space.sums.flatten(0, 1)[:, first : first + tokens]
    sizes = [first, tokens, all_tokens, runs, length, heads, 1, group, d_model, width]
    strides = [*a.stride()[:2], *of_q, *of_k, *space.x.stride()[:3]]
    arguments = [a, q, k, v, weight.contiguous(), space.along, space.x, rows, *sizes, *strides]
    _expand(arguments, kinds * heads, tokens, d_model, width, weighted=True, rank_one=True)


def expand_outputs(z: Tensor, matrix: Tensor, heads: int, rows: Tensor) -> None:
    """Write every head's part of o_proj's output for some tokens.

    Args:
        z: the heads' outputs, float32 [tokens, H D].
        matrix: o_proj's weight, [M, H D].
        heads: H.
        rows: float32 [H, tokens, M], contiguous.
    """
    tokens, width, d_model = len(z), z.shape[1] // heads, matrix.shape[0]
    z = _rows(z)
    of_w = width * matrix.stride(1), matrix.stride(1), matrix.stride(0)
    sizes = [0, tokens, tokens, 0, 1, heads, 1, 1, d_model, width]
    arguments = [z, matrix, matrix, matrix, z, z, z, rows, *sizes, width, z.stride(0), *of_w, *of_w, 0, 0, 0]
    _expand(arguments, heads, tokens, d_model, width, weighted=False, rank_one=False)


def _expand(
    arguments: list[object], targets: int, tokens: int, d_model: int, width: int, weighted: bool, rank_one: bool
) -> None:
    block_t, block_m, block = 64, 64, min(64, max(16, power_of_two(width)))
    launch(
        "expand",
        (targets, -(-tokens // block_t), -(-d_model // block_m)),
        arguments,
        operations=2 * targets * tokens * d_model * width,
        WEIGHT=weighted,
        RANK_ONE=rank_one,
        PRECISION=PRECISION,
        BLOCK_T=block_t,
        BLOCK_M=block_m,
        BLOCK=block,
    )
