"""Edge scores: gradients of the inputs of q, k, v in head space (head_space.py), expanded once per batch.

The scores are one matrix product per pair, over tokens and width at once, of the sources' differences delta_s with the
targets' gradients, a few layers at a time, during the backward pass. Both are stored by node, then by token,
[S, B T, M] and [R', B T, M]: a node is written as one block, and a pair's tokens and width are one contiguous axis.
Large tensors are divided into pieces of some tokens each (tensor_pool.py).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.attention_gradients import AttentionReads, RankOneTerms
from headwatch.attribution.edge_blocks import EdgeBlocks
from headwatch.attribution.endpoints import EndpointDifferences, first_output
from headwatch.attribution.operations import PLAIN, Operations
from headwatch.attribution.run_layout import RunLayout
from headwatch.attribution.tensor_pool import Piece, TensorPool, pieces
from headwatch.model.anatomy import Anatomy
from headwatch.model.parts import KINDS, Norm, Projection
from headwatch.model.precision import at_least_float32, without_tf32
from headwatch.model.whole_weights import readable


class EdgeCollector:
    """Accumulates a batch's edge scores through hooks on the forward and backward passes of the interpolated runs.

    Args:
        anatomy: the model.
        pairs: B.
        blocks: the targets by block.
        pool: allocates large tensors.
        operations: the plain operations, or the fused ones.
    """

    def __init__(
        self, anatomy: Anatomy, pairs: int, blocks: EdgeBlocks, pool: TensorPool, operations: Operations = PLAIN
    ) -> None:
        self.anatomy, self.pairs, self.blocks, self.pool, self.operations = anatomy, pairs, blocks, pool, operations
        self._layout = RunLayout(pairs, 1)
        self._reads: list[AttentionReads] = []
        self._residual: dict[int, Tensor] = {}  # inputs of norms that attention and MLP share, until the MLP runs
        self._incomplete: dict[int, list[Tensor]] = {}  # gradients of a block's targets, pieces of [B T, R', M]
        self._missing: dict[int, int] = {}
        self._rank_one: dict[int, list[RankOneTerms]] = {}

    @without_tf32()
    def set_sources(self, differences: EndpointDifferences) -> None:
        """Compute the sources from the batch's endpoints; required before the first backward pass."""
        like, n_sources = differences.input, len(self.anatomy.sources)
        self._pieces = pieces(self.pairs, like.shape[1], n_sources * like[0, 0].nbytes, like.device)
        self.sources = source_differences(  # pieces of [S, B T, M]
            self.anatomy, differences, self.pool, self._pieces, self.operations
        )
        self._sums = [
            like.new_zeros(self.pairs, self.blocks.n_sources(block), len(targets))
            for block, targets in enumerate(self.blocks.targets)
        ]

    def hooks(self, layout: RunLayout) -> list[RemovableHandle]:
        """Register hooks for one forward pass; call `finish` after its backward pass."""
        self._layout = layout
        self._reads = [AttentionReads() for _ in self.anatomy.layers]
        handles = [self.anatomy.final_norm.register_forward_pre_hook(self._own_copy(self._logits_gradient))]
        for index, layer in enumerate(self.anatomy.layers):
            if layer.whole:
                handles += self._node_hooks(index, layer.mlp)
                continue
            if layer.attn_norm is not None:
                handles.append(layer.attn_norm.module.register_forward_pre_hook(self._keep_x(index)))
            for projection in layer.projections:
                handles.append(projection.last.register_forward_hook(self._copy_heads(index, projection)))
            shared = (index, layer.attn_norm) if layer.shared_norm and layer.attn_norm is not None else None
            own_copy = self._own_copy(self._mlp_gradient(index), shared)
            handles.append(layer.mlp_reads.register_forward_pre_hook(own_copy))
        return handles

    def finish(self) -> None:
        """Check that every target received its gradient, and discard the state of the pass."""
        assert not self._incomplete, "a target received no gradient"
        self._reads = []

    def close(self) -> Tensor:
        """Release the sources and return the scores summed over points, [B, S, R], zero where there is no edge."""
        self.pool.release(*self.sources)
        del self.sources
        n_sources, n_targets = len(self.anatomy.sources), len(self.anatomy.targets)
        scores = self._sums[0].new_zeros(self.pairs, n_sources, n_targets)
        for block, summed in enumerate(self._sums):
            scores[:, : summed.shape[1]].index_copy_(2, self.blocks.columns[block], summed)
        return scores.masked_fill_(self.blocks.no_edge, 0)

    # Forward: every target reads its own copy, whose gradient is hooked.

    def _own_copy(self, on_gradient: Callable[[Tensor], None], shared_norm: tuple[int, Norm] | None = None) -> Any:
        """Hook before a module that reads the residual vector, or the output of a norm shared with attention."""

        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0] if shared_norm is None else self._residual.pop(shared_norm[0])
            copy = x.view_as(x)
            copy.register_hook(on_gradient)
            return (copy if shared_norm is None else shared_norm[1].module.forward(copy), *args[1:])

        return hook

    def _node_hooks(self, index: int, layer: torch.nn.Module) -> list[RemovableHandle]:
        """Hooks on a layer that is one node: dL/d(input) through the node alone is dL/d(input) - dL/d(output)."""
        at_output: list[Tensor] = []

        def after(module: Any, args: Any, output: Any) -> None:
            first_output(output, args).register_hook(lambda grad: at_output.append(grad.detach()))

        def on_gradient(grad: Tensor) -> None:
            self._residual_gradient(at_least_float32(grad) - at_least_float32(at_output.pop()), target)

        target = self.anatomy.mlp_target(index)
        return [
            layer.register_forward_pre_hook(self._own_copy(on_gradient)),
            layer.register_forward_hook(after),
        ]

    def _keep_x(self, index: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            self._reads[index].x = args[0].detach()
            if self.anatomy.layers[index].shared_norm:
                self._residual[index] = args[0]

        return hook

    def _copy_heads(self, index: int, projection: Projection) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            y = (output if projection.norm is None else args[0]).detach()
            for kind in projection.kinds:
                self._reads[index].y[kind] = y[..., projection.rows(kind, device=y.device)]
            copies = projection.copy_heads(output)
            copies.register_hook(self._projection_gradient(index, projection))
            return copies

        return hook

    # Backward: rows are collected until their block is complete (layers come last to first; parallel attention and MLP
    # in any order).

    def _rows(self, target: int, width: int) -> list[Tensor]:
        """Rows for the gradients of `width` targets from this one on: pieces of [width, B T, M]."""
        block, first = self.blocks.place[target]
        targets, d_model = len(self.blocks.targets[block]), self.anatomy.d_model
        if block not in self._incomplete:
            self._incomplete[block] = [
                self.pool.allocate(
                    own, (targets, piece.n_tokens, d_model), self.blocks.most_targets * piece.n_tokens * d_model
                )
                for piece, own in zip(self._pieces, self.sources, strict=True)
            ]
            self._missing[block] = targets
        self._missing[block] -= width
        return [piece[first : first + width] for piece in self._incomplete[block]]

    @without_tf32()
    def _multiply_when_complete(self, target: int) -> None:
        """Add the products of this target's block and the sources that it reads to the scores."""
        block, _ = self.blocks.place[target]
        if self._missing[block]:
            return
        gradients, n_sources = self._incomplete.pop(block), self.blocks.n_sources(block)
        rank_one = self._joined(self._rank_one.pop(block, []), len(self.blocks.targets[block]))
        for piece, sources, rows in zip(self._pieces, self.sources, gradients, strict=True):
            summed = self._sums[block][piece.pairs]
            read = sources[:n_sources]
            summed.baddbmm_(_by_pair(read, piece), _by_pair(rows, piece).mT)
            if rank_one is not None:
                numbers, vectors = (term[piece.tokens] for term in rank_one)
                dots = torch.bmm(read.transpose(0, 1), vectors.mT)  # [B T, S', n]
                dots = dots.unflatten(0, (piece.n_pairs, -1)).transpose(1, 2).flatten(2)  # [B, S', T n]
                summed.baddbmm_(dots, numbers.reshape(piece.n_pairs, -1, numbers.shape[-1]), alpha=-1)
            self.pool.release(rows)

    def _logits_gradient(self, grad: Tensor) -> None:
        self._residual_gradient(grad, len(self.anatomy.targets) - 1)

    def _mlp_gradient(self, index: int) -> Callable[[Tensor], None]:
        return lambda grad: self._residual_gradient(grad, self.anatomy.mlp_target(index))

    def _residual_gradient(self, grad: Tensor, target: int) -> None:
        with torch.no_grad():
            by_run, rows = self._layout.by_run(grad), self._rows(target, 1)
            if len(rows) == 1:
                torch.sum(by_run, 0, dtype=rows[0].dtype, out=rows[0].view(by_run.shape[1:]))
            else:
                summed = by_run.sum(0, dtype=self._sums[0].dtype).flatten(0, 1)
                for piece, own in zip(self._pieces, rows, strict=True):
                    own[0] = summed[piece.tokens]
            self._multiply_when_complete(target)

    def _projection_gradient(self, index: int, projection: Projection) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            reads = self._reads[index]
            for kind in projection.kinds:
                reads.grads[kind] = grad[..., projection.rows(kind, True, grad.device)]
            if len(reads.grads) == len(KINDS):
                with torch.no_grad():
                    self._attention_gradients(index, reads)
                    self._multiply_when_complete(self.anatomy.attention_targets(index).start)
                self._reads[index] = AttentionReads()

        return hook

    @without_tf32()
    def _attention_gradients(self, index: int, reads: AttentionReads) -> None:
        """Write the gradients at the copies of one layer's q, k and v to their rows; keep their rank-one terms."""
        target, layout = self.anatomy.attention_targets(index).start, self._layout
        block, first = self.blocks.place[target]
        terms, rows = self._rank_one.setdefault(block, []), self._rows(target, 3 * self.anatomy.n_heads)
        terms += self.operations.attention_gradients(
            self.anatomy.layers[index], reads, layout, rows, self._pieces, first
        )

    def _joined(self, terms: list[RankOneTerms], width: int) -> tuple[Tensor, Tensor] | None:
        """The terms of all points of a block as one product: numbers [B T, n, R'], vectors [B T, n, M].

        Numbers are padded with zeros to all R' targets of the block.
        """
        if not terms:
            return None
        by_token = self._layout.by_token
        padded = [F.pad(term.numbers, (term.first, width - term.first - term.numbers.shape[-1])) for term in terms]
        numbers = torch.cat([by_token(own) for own in padded], 1)
        return numbers, torch.cat([by_token(term.vectors) for term in terms], 1)


def _by_pair(nodes: Tensor, piece: Piece) -> Tensor:
    """[S, B T, M] -> [B, S, T M], without a copy."""
    return nodes.view(len(nodes), piece.n_pairs, -1).transpose(0, 1)


def source_differences(
    anatomy: Anatomy,
    differences: EndpointDifferences,
    pool: TensorPool,
    where: list[Piece],
    operations: Operations,
) -> list[Tensor]:
    """delta_s of every source: corrupted - clean of what it adds to the residual stream, pieces of [S, B T, M]."""
    like, n_sources = differences.input, len(anatomy.sources)
    out = [pool.allocate(like, (n_sources, piece.n_tokens, anatomy.d_model)) for piece in where]

    def put(source: int, states: Tensor) -> None:
        for piece, own in zip(where, out, strict=True):
            own[source] = states.flatten(0, 1)[piece.tokens]

    put(0, differences.input)
    for index, layer in enumerate(anatomy.layers):
        put(anatomy.mlp_source(index), differences.mlp[index])
        if layer.whole:
            for own in out:
                own[anatomy.head_source(index)] = 0.0
            continue
        heads = anatomy.head_source(index)
        z = differences.z[index].flatten(0, 1)
        with readable(layer.out):
            operations.outputs_of_heads(layer, z, [own[heads] for own in out], where)
    return out
