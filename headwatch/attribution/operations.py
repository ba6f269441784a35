"""The operations of a pass for which there are fused kernels, in plain PyTorch; fused_operations.py has the kernels."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.attribution.attention_gradients import (
    AttentionReads,
    RankOneTerms,
    attention_gradients,
    outputs_of_heads,
)
from headwatch.attribution.run_layout import RunLayout
from headwatch.attribution.tensor_pool import Piece
from headwatch.model.anatomy import Anatomy
from headwatch.model.parts import Layer
from headwatch.model.precision import at_least_float32


class Operations:
    """Plain PyTorch."""

    def model_parts(self, model: nn.Module) -> AbstractContextManager[object]:
        """A block in which the model's own norms, MLPs and rotary embeddings may run as kernels."""
        return nullcontext()

    def repeats_heads(self, anatomy: Anatomy) -> bool:
        """Whether `after_prefix` repeats keys and values for all query heads, and the model need not."""
        return False

    def after_prefix(
        self, prefix: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, copies: int, heads: int | None
    ) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values [B, K, C, D] followed by those of the runs, [n B, K g, T, D].

        heads: H, where keys and values are to be repeated for all query heads.
        """
        return AfterPrefix.apply(prefix[0], keys, copies), AfterPrefix.apply(prefix[1], values, copies)

    def difference(self, corrupted: Tensor, clean: Tensor, scale: float) -> Tensor:
        """(corrupted - clean) * scale, in float32 or float64."""
        # A float32 tensor minus one in 16 bits is computed in float32, without a second cast.
        difference = at_least_float32(corrupted) - clean
        return difference if scale == 1.0 else difference * scale

    def add_squares(self, states: Sequence[Tensor], scales: Sequence[float], out: Tensor) -> None:
        """Add scale * states^2 of all states to `out`; all of one shape."""
        for own, scale in zip(states, scales, strict=True):
            out.addcmul_(own, own, value=scale)

    def add_head_scores(self, gradients: Tensor, difference: Tensor, scores: Tensor) -> None:
        """Add the sum over (n, T, D) of gradients [n, B, T, H D] * difference [B, T, H D] to scores [B, H]."""
        summed = at_least_float32(gradients.sum(0, dtype=scores.dtype))
        scores.add_((summed * difference).unflatten(-1, (scores.shape[1], -1)).sum((1, 3)))

    def outputs_of_heads(self, layer: Layer, z: Tensor, out: list[Tensor], where: list[Piece]) -> None:
        """See `attention_gradients.outputs_of_heads`."""
        outputs_of_heads(layer, z, out, where)

    def attention_gradients(
        self,
        layer: Layer,
        reads: AttentionReads,
        layout: RunLayout,
        rows: list[Tensor],
        where: list[Piece],
        first: int,
    ) -> list[RankOneTerms]:
        """See `attention_gradients.attention_gradients`."""
        return attention_gradients(layer, reads, layout, rows, where, first)


PLAIN = Operations()


class AfterPrefix(torch.autograd.Function):
    """[B, K, C, D] and [n B, K g, T, D] -> [n B, K g, C + T, D]: one write, where `cat` would need copies to read."""

    @staticmethod
    def forward(ctx: Any, prefix: Tensor, states: Tensor, copies: int) -> Tensor:
        """Keys or values of the prefix, repeated for `copies` runs, and those of the runs."""
        pairs, kv_heads, ctx.length, width = prefix.shape
        rows, heads, length, _ = states.shape
        out = states.new_empty(rows, heads, ctx.length + length, width)
        out[:, :, ctx.length :] = states
        before = out[:, :, : ctx.length].unflatten(1, (kv_heads, -1)).unflatten(0, (copies, pairs))
        before.copy_(prefix[None, :, :, None])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        """The gradient of the runs' states, as a view."""
        return None, grads[0][:, :, ctx.length :], None
