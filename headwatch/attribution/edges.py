"""Edge scores, exact and fast: gradients of the inputs of q, k, v are kept in head space and expanded once a batch.

With xhat = x / rms(x), r = 1 / rms(x), w the norm's weight, y_h = W_h (w * xhat) + b_h a projection's output for head h
and g_h = dL/dy_h, the gradient at the head's own copy of the residual vector x, before the norm, is

    dL/dx = r (w * W_h^T g_h) - r xhat (g_h . (y_h - b_h)) / M

(the second term is the norm's own Jacobian). Summed over the path's points k, the first term needs only
A_h = sum_k r_k g_{h,k}, [T, D]; the second only the numbers c_{h,k} = r_k g_{h,k} . (y_{h,k} - b_h) / M beside
xhat_k. So

    edge(s, h) = sum_t  delta_s . (w * W_h^T A_h)  -  sum_{t,k} (delta_s . xhat_k) c_{h,k}

is one matrix product of the sources' differences with the gradients w * W_h^T A_h - sum_k xhat_k c_{h,k}, a few layers
at a time, in the backward pass. Large arrays lie in pieces of some tokens each (`buffers.pieces` says why).

Other architectures change a factor or add a correction of the same shape (a vector for each token and point, taken off
each head by a number):

- LayerNorm: xhat = (x - mean) r, the norm's bias b' adds W_h b' to b_h, and what is expanded loses its mean over M.
- No norm in front (OLMo 2): r = w = 1, and no xhat.
- A norm over the full width behind the projection (OLMo 2): with yhat = r' y, r' = 1 / rms(y), and w' its weight, g_h
  is taken behind that norm. The gradient at y is then r' (w' g)_h - yhat r' (yhat_h . (w' g)_h) / width, of which the
  first part is a head's own, and the second one vector for all heads: W^T yhat in residual space.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.buffers import Buffers, Piece, pieces
from headwatch.attribution.endpoints import Endpoints
from headwatch.attribution.run_layout import Arrangement
from headwatch.model.anatomy import KINDS, Anatomy, Kind, Layer, Norm, Projection, linear_map
from headwatch.model.forward import wide


@dataclass
class _AttentionReads:
    """One attention layer, between its forward and its backward pass. Runs may lie beside each other: [B, m T, ...]."""

    x: Tensor | None = None  # the residual vector before the norm, [m B, T, M]
    y: dict[Kind, Tensor] = field(default_factory=dict)  # projection outputs, [m B, T, (heads D)]
    grads: dict[Kind, Tensor] = field(default_factory=dict)  # gradients of `last`, a copy a query head, [m B, T, (H D)]


@dataclass(frozen=True)
class _Along:
    """Vectors of each token and point, which a number takes off each of several targets' gradients.

    Attributes:
        numbers: [m B, T, R''].
        vectors: [m B, T, M].
        first: where these targets begin among those of their block.
    """

    numbers: Tensor
    vectors: Tensor
    first: int


# About how many targets are multiplied with the sources at once. Fewer are bound by reading the sources: of
# SmolLM2-135M's layers, of 28 targets each, one at a time was multiplied at 40 GFLOP/s and four at 70 (dev/log.md).
TARGETS_AT_ONCE = 100


class EdgeCollector:
    """Collects a batch's edge scores through hooks while the interpolated runs go forward and backward.

    Wave w are the targets that read the input and the first w layers: layer w's attention, and the MLP before it
    (beside it, where they are parallel); the logits are in the last one. A block of successive waves is multiplied with
    all that the last of them reads in one product, of which the edges that do not exist are left out.

    Args:
        anatomy: the model.
        pairs: B.
        buffers: where large arrays come from, and where they go back to.
    """

    def __init__(self, anatomy: Anatomy, pairs: int, buffers: Buffers) -> None:
        self.anatomy, self.pairs, self.buffers = anatomy, pairs, buffers
        self._arrangement = Arrangement(pairs, 1)
        self._reads: list[_AttentionReads] = []
        n_layers = anatomy.n_layers
        waves: list[list[int]] = [[] for _ in range(n_layers + 1)]  # the targets of each
        for index, layer in enumerate(anatomy.layers):
            waves[index] += self._attention_targets(index)
            waves[index if layer.parallel else index + 1].append(anatomy.mlp_target(index))
        waves[-1].append(len(anatomy.targets) - 1)
        at_once = max(1, round(TARGETS_AT_ONCE / (3 * anatomy.n_heads + 1)))
        self._last_wave = [min(first + at_once - 1, n_layers) for first in range(0, n_layers + 1, at_once)]
        self._blocks = [list(chain(*waves[first : first + at_once])) for first in range(0, n_layers + 1, at_once)]
        self._place = {target: (b, row) for b, block in enumerate(self._blocks) for row, target in enumerate(block)}
        self._most_targets = max(map(len, self._blocks))
        self._waiting: dict[int, list[Tensor]] = {}  # gradients of a block's targets, pieces of [B T, R', M]
        self._missing: dict[int, int] = {}
        self._along: dict[int, list[_Along]] = {}  # what is to be taken off them

    def take(self, ends: Endpoints) -> None:
        """The endpoint runs of the batch, whose differences are the sources; needed before the first backward pass."""
        length, n_sources = ends.input.shape[1], len(self.anatomy.sources)
        self._pieces = pieces(self.pairs, length, n_sources * ends.input[0, 0].nbytes, ends.input.device)
        self.sources = source_differences(self.anatomy, ends, self.buffers, self._pieces)  # pieces of [B T, S, M]
        self.scores = ends.input.new_zeros(self.pairs, n_sources, len(self.anatomy.targets))
        self._no_edge = ~self.anatomy.is_real().to(self.scores.device)

    def start(self, arrangement: Arrangement) -> list[RemovableHandle]:
        """Put the hooks on for one forward pass of runs that lie so; call `finish` after its backward pass."""
        self._arrangement = arrangement
        self._reads = [_AttentionReads() for _ in self.anatomy.layers]
        handles = [self.anatomy.final_norm.register_forward_pre_hook(self._read_alone(self._logits_gradient))]
        for index, layer in enumerate(self.anatomy.layers):
            if layer.attn_norm is not None:
                handles.append(layer.attn_norm.module.register_forward_pre_hook(self._keep_x(index)))
            for projection in layer.projections:
                handles.append(projection.last.register_forward_hook(self._read_by_head(index, projection)))
            handles.append(layer.mlp_reads.register_forward_pre_hook(self._read_alone(self._mlp_gradient(index))))
        return handles

    def finish(self) -> None:
        """Check that every target had its gradient, and forget the pass."""
        assert not self._waiting, "a target never got its gradient"
        self._reads = []

    def close(self) -> Tensor:
        """The sum of the points' scores, [B, S, R]; after this the collector is done with."""
        self.buffers.give(*self.sources)
        del self.sources
        return self.scores

    def _attention_targets(self, index: int) -> list[int]:
        """One layer's attention, in the order in which its rows are made: all q, all k, all v."""
        first = self.anatomy.attention_targets(index).start
        return [first + 3 * head + place for place in range(3) for head in range(self.anatomy.n_heads)]

    # Forward: give every target a copy of its own to read, and ask for its gradient.

    def _read_alone(self, on_gradient: Callable[[Tensor], None]) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            copy = args[0].view_as(args[0])
            copy.register_hook(on_gradient)
            return (copy, *args[1:])

        return hook

    def _keep_x(self, index: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            self._reads[index].x = args[0].detach()

        return hook

    def _read_by_head(self, index: int, projection: Projection) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            y = (output if projection.norm is None else args[0]).detach()
            for kind in projection.kinds:
                self._reads[index].y[kind] = y[..., projection.rows(kind)]
            copies = projection.copy_heads(output)
            copies.register_hook(self._projection_gradient(index, projection))
            return copies

        return hook

    # Backward: a target's rows wait until all of their block are there (layers come last to first; where attention and
    # MLP are parallel, in any order).

    def _rows(self, target: int, width: int) -> list[Tensor]:
        """Where targets of a block put their gradients, from this one on: pieces of [B T, width, M]."""
        block, first = self._place[target]
        targets, d_model = len(self._blocks[block]), self.anatomy.d_model
        if block not in self._waiting:
            self._waiting[block] = [
                self.buffers.take(piece, (len(piece), targets, d_model), len(piece) * self._most_targets * d_model)
                for piece in self.sources
            ]
            self._missing[block] = targets
        self._missing[block] -= width
        return [piece[:, first : first + width] for piece in self._waiting[block]]

    def _contract_when_complete(self, target: int) -> None:
        """Add the products of this target's block with the sources that it reads to the scores."""
        block, _ = self._place[target]
        if self._missing[block]:
            return
        waiting = self._waiting.pop(block)
        self._take_off(waiting, self._along.pop(block, []))
        n_sources = 1 + self._last_wave[block] * (self.anatomy.n_heads + 1)
        columns = torch.tensor(self._blocks[block], device=self.scores.device)
        summed = self.scores.new_zeros(self.pairs, n_sources, len(columns))
        for piece, sources, vectors in zip(self._pieces, self.sources, waiting, strict=True):
            tokens, targets = vectors.shape[:2]
            most = tokens * sources.shape[1] * self._most_targets
            products = self.buffers.take(vectors, (tokens, n_sources, targets), most)
            torch.bmm(sources[:, :n_sources], vectors.mT, out=products)
            summed[piece.pairs] += products.unflatten(0, (piece.n_pairs, -1)).sum(1)
            self.buffers.give(vectors, products)
        self.scores[:, :n_sources, columns] += summed.masked_fill_(self._no_edge[:n_sources, columns], 0)

    def _logits_gradient(self, grad: Tensor) -> None:
        self._residual_gradient(grad, len(self.anatomy.targets) - 1)

    def _mlp_gradient(self, index: int) -> Callable[[Tensor], None]:
        return lambda grad: self._residual_gradient(grad, self.anatomy.mlp_target(index))

    def _residual_gradient(self, grad: Tensor, target: int) -> None:
        with torch.no_grad():
            summed = wide(self._arrangement.by_run(grad).sum(0, dtype=self.scores.dtype)).flatten(0, 1)
            for piece, rows in zip(self._pieces, self._rows(target, 1), strict=True):
                rows[:, 0] = summed[piece.tokens]
            self._contract_when_complete(target)

    def _projection_gradient(self, index: int, projection: Projection) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            reads = self._reads[index]
            for kind in projection.kinds:
                reads.grads[kind] = grad[..., projection.rows(kind, copied=True)]
            if len(reads.grads) == len(KINDS):
                with torch.no_grad():
                    self._attention_gradients(index, reads)
                    self._contract_when_complete(self.anatomy.attention_targets(index).start)
                self._reads[index] = _AttentionReads()

        return hook

    def _attention_gradients(self, index: int, reads: _AttentionReads) -> None:
        """Make the gradients at the copies of one layer's q, k and v: see the formulas at the top."""
        anatomy, layer = self.anatomy, self.anatomy.layers[index]
        heads, width, model_width = anatomy.n_heads, anatomy.head_dim, anatomy.d_model
        block, first = self._place[anatomy.attention_targets(index).start]
        rows = self._rows(anatomy.attention_targets(index).start, 3 * heads)
        norm = layer.attn_norm
        x = r = weight = None
        if norm is not None:
            assert reads.x is not None
            x = norm.centre(wide(reads.x))
            r, weight = norm.inverse_scale(x), norm.weight  # r: [m B, T, 1]
        numbers, sums, matrices = [], [], []
        for place, (kind, norm_behind, matrix, bias) in enumerate(_maps(layer, norm, model_width)):
            grads = wide(reads.grads[kind])  # g_h, [m B, T, (H D)]
            y = wide(reads.y[kind])
            through = matrix if weight is None else matrix * weight  # W w, [(H or K) D, M]
            if norm is not None:
                through = norm.centre(through)
            off_bias = y if norm is None else y - bias  # W (w * xhat)
            scale, along_y = r, None
            if norm_behind is not None:
                behind = norm_behind.inverse_scale(y)  # r'
                scale = behind if r is None else r * behind
                scaled = norm_behind.weight  # w'
                yhat = y * behind
                # r r' (yhat_h . (w' g)_h) / width
                along_y = scale * _by_head(grads, yhat * scaled, heads) / y.shape[-1]
                through_all = through
                through = through * scaled[:, None]
            per_head = through.unflatten(0, (-1, width))  # [H or K, D, M]
            sums.append(self._sum_over_points(grads, scale).unflatten(-1, (heads, width)))  # A_h, [B T, H, D]
            matrices.append(per_head.repeat_interleave(heads // len(per_head), 0))
            if along_y is not None:
                at = first + place * heads
                self._along.setdefault(block, []).append(_Along(along_y, yhat @ through_all, at))
            if scale is not None and norm is not None:
                own = off_bias if norm_behind is None else off_bias * norm_behind.weight
                along_x = _by_head(grads, own, heads) * scale
                if along_y is not None:
                    along_x = along_x - along_y * (yhat * off_bias).sum(-1, keepdim=True)
                numbers.append(along_x / model_width)
        _each_head(torch.cat(sums, 1), torch.cat(matrices), rows, self._pieces, self.buffers)
        if x is not None and r is not None:
            self._along.setdefault(block, []).append(_Along(torch.cat(numbers, -1), x * r, first))

    def _sum_over_points(self, grads: Tensor, scale: Tensor | None) -> Tensor:
        """Sum of the points' gradients, each times its own number: [m B, T, W], [m B, T, 1] -> [B T, W]."""
        grads = self._arrangement.by_token(grads)
        if scale is None:
            return grads.sum(1)
        return torch.bmm(self._arrangement.by_token(scale).mT.contiguous(), grads)[:, 0]  # else it goes token by token

    def _take_off(self, rows: list[Tensor], along: list[_Along]) -> None:
        """Take every point's numbers times its vectors off the rows, pieces of [B T, R', M].

        Numbers are padded to all of the rows: of some of them only, baddbmm would go token by token.
        """
        if not along:
            return
        width = rows[0].shape[1]
        by_token = self._arrangement.by_token
        widened = [F.pad(a.numbers, (a.first, width - a.first - a.numbers.shape[-1])) for a in along]
        numbers = torch.cat([by_token(own) for own in widened], 1)
        vectors = torch.cat([by_token(a.vectors) for a in along], 1)
        for piece, mine in zip(self._pieces, rows, strict=True):
            mine.baddbmm_(numbers[piece.tokens].mT, vectors[piece.tokens], alpha=-1)


def _maps(layer: Layer, norm: Norm | None, width: int) -> Iterator[tuple[Kind, Norm | None, Tensor, Tensor]]:
    """For q, k and v: the norm behind the projection, its matrix [out, M], and its output where xhat is 0, [out]."""
    for projection in layer.projections:
        matrix, bias = linear_map(projection.module, width)
        if norm is not None and norm.bias is not None:
            bias = bias + matrix @ norm.bias
        for kind in projection.kinds:
            rows = projection.rows(kind)
            yield kind, projection.norm, matrix[rows], bias[rows]


def _each_head(vectors: Tensor, matrices: Tensor, out: list[Tensor], where: list[Piece], buffers: Buffers) -> None:
    """Every head's vectors [B T, H, D] times its own matrix [H, D, M], put into pieces of [B T, H, M].

    One batched product and a copy: products of a head each, written where they belong, took longer on two threads than
    on one (dev/log.md), and there are hundreds of them.
    """
    (rows, heads, _), width = vectors.shape, matrices.shape[-1]
    products = buffers.take(out[0], (heads, rows, width))
    torch.bmm(vectors.transpose(0, 1), matrices, out=products)
    for piece, mine in zip(where, out, strict=True):
        mine.copy_(products[:, piece.tokens].transpose(0, 1))
    buffers.give(products)


def _by_head(grads: Tensor, states: Tensor, heads: int) -> Tensor:
    """Dot products of gradients [..., (H D)] with states [..., (H or K) D], each query head with its own: [..., H]."""
    if grads.shape[-1] == states.shape[-1]:
        return (grads * states).unflatten(-1, (heads, -1)).sum(-1)
    width = grads.shape[-1] // heads
    states = states.unflatten(-1, (-1, 1, width))
    groups = grads.unflatten(-1, (states.shape[-3], -1, width))  # the query heads of one key/value head side by side
    return (groups * states).sum(-1).flatten(-2)


def source_differences(anatomy: Anatomy, ends: Endpoints, buffers: Buffers, where: list[Piece]) -> list[Tensor]:
    """delta_s of every source, pieces of [B T, S, M]: what it adds to the residual stream, corrupted - clean."""
    shape = (len(anatomy.sources), anatomy.d_model)
    out = [buffers.take(ends.input, (piece.tokens.stop - piece.tokens.start, *shape)) for piece in where]

    def put(source: int, states: Tensor) -> None:
        for piece, mine in zip(where, out, strict=True):
            mine[:, source] = states.flatten(0, 1)[piece.tokens]

    put(0, ends.input)
    for index, layer in enumerate(anatomy.layers):
        matrix, _ = linear_map(layer.out, anatomy.n_heads * anatomy.head_dim)
        per_head = layer.scaled(matrix.T).unflatten(0, (anatomy.n_heads, -1))  # [H, D, M]
        z = ends.z[index].flatten(0, 1).unflatten(-1, (anatomy.n_heads, -1))  # [B T, H, D]
        first = anatomy.head_source(index).start
        _each_head(z, per_head, [piece[:, first : first + anatomy.n_heads] for piece in out], where, buffers)
        put(anatomy.mlp_source(index), ends.mlp[index])
    return out
