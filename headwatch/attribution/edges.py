"""Edge scores, exact and fast: gradients of the inputs of q, k, v are kept in head space and expanded once a batch.

With xhat = x / rms(x), r = 1 / rms(x), w the norm's weight, y_h = W_h (w * xhat) + b_h a projection's output for head h
and g_h = dL/dy_h, the gradient at the head's own copy of the residual vector x, before the norm, is

    dL/dx = r (w * W_h^T g_h) - r xhat (g_h . (y_h - b_h)) / M

(the second term is the norm's own Jacobian). Summed over the path's points k, the first term needs only
A_h = sum_k r_k g_{h,k}, [T, D]; the second only the numbers c_{h,k} = r_k g_{h,k} . (y_{h,k} - b_h) / M beside
xhat_k. So

    edge(s, h) = sum_t  delta_s . (w * W_h^T A_h)  -  sum_{t,k} (delta_s . xhat_k) c_{h,k}

is one matrix product of the sources' differences with [w * W_h^T A_h, xhat_k], layer by layer, in the backward pass.

Other architectures change a factor or add a correction of the same shape (a vector for each token and point, taken off
each head by a number):

- LayerNorm: xhat = (x - mean) r, the norm's bias b' adds W_h b' to b_h, and what is expanded loses its mean over M.
- No norm in front (OLMo 2): r = w = 1, and no xhat.
- A norm over the full width behind the projection (OLMo 2): with yhat = r' y, r' = 1 / rms(y), and w' its weight, g_h
  is taken behind that norm. The gradient at y is then r' (w' g)_h - yhat r' (yhat_h . (w' g)_h) / width, of which the
  first part is a head's own, and the second one vector for all heads: W^T yhat in residual space.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.anatomy import KINDS, Anatomy, Kind, Layer, Norm, Projection, linear_map
from headwatch.attribution.runs import Endpoints, wide


@dataclass
class _AttentionReads:
    """One attention layer, between its forward and its backward pass."""

    x: Tensor | None = None  # the residual vector before the norm, [m B, T, M]
    y: dict[Kind, Tensor] = field(default_factory=dict)  # projection outputs, [m B, T, (heads D)]
    grads: dict[Kind, Tensor] = field(default_factory=dict)  # gradients of `last`, a copy a query head, [m B, T, (H D)]


@dataclass(frozen=True)
class _Correction:
    """A vector for each token and point of the path, which a number takes off each of several targets' gradients.

    Attributes:
        vectors: [m B, T, M].
        numbers: [m B, T, R'].
        columns: the targets, R' of them.
    """

    vectors: Tensor
    numbers: Tensor
    columns: Tensor


@dataclass(frozen=True)
class _Rows:
    """Gradients of several targets, waiting for their product with the sources.

    Attributes:
        vectors: gradients expanded to residual space, [B T, R', M].
        columns: which targets they belong to, R' of them.
        corrections: what is still to be taken off them.
    """

    vectors: Tensor
    columns: Tensor
    corrections: tuple[_Correction, ...] = ()


class EdgeCollector:
    """Collects a batch's edge scores through hooks while the interpolated runs go forward and backward.

    Args:
        anatomy: the model.
        ends: the endpoint runs of the batch, whose differences are the sources.
    """

    def __init__(self, anatomy: Anatomy, ends: Endpoints) -> None:
        self.anatomy = anatomy
        self.sources = source_differences(anatomy, ends)  # [B, T, S, M]
        batch, self.length, n_sources, _ = self.sources.shape
        self.scores = self.sources.new_zeros(batch, n_sources, len(anatomy.targets))
        self._reads: list[_AttentionReads] = []
        # Targets that read the same sources are multiplied with them in one product: wave w reads the input and the
        # first w layers. Layer w's attention is in it, and the MLP before it (beside it, where they are parallel).
        mlp_waves = [index + (not layer.parallel) for index, layer in enumerate(anatomy.layers)]
        self._mlp_wave = mlp_waves
        self._members = Counter([*range(anatomy.n_layers), *mlp_waves, anatomy.n_layers])
        self._waiting: dict[int, list[_Rows]] = {}

    def start(self) -> list[RemovableHandle]:
        """Put the hooks on for one forward and backward pass; call `finish` after the backward pass."""
        self._reads = [_AttentionReads() for _ in self.anatomy.layers]
        self._waiting = {}
        handles = [self.anatomy.final_norm.register_forward_pre_hook(self._read_alone(self._logits_gradient))]
        for index, layer in enumerate(self.anatomy.layers):
            if layer.attn_norm is not None:
                handles.append(layer.attn_norm.module.register_forward_pre_hook(self._keep_x(index)))
            for projection in layer.projections:
                handles.append(projection.last.register_forward_hook(self._read_by_head(index, projection)))
            handles.append(layer.mlp_reads.register_forward_pre_hook(self._read_alone(self._mlp_gradient(index))))
        return handles

    def finish(self) -> Tensor:
        """Edge scores summed over the points of the path so far, [B, S, R]."""
        assert not self._waiting, "a target never got its gradient"
        self._reads = []
        return self.scores

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

    # Backward: a target's rows wait until all of their wave are there (layers come last to first; where attention and
    # MLP are parallel, in any order).

    def _arrive(self, wave: int, rows: _Rows) -> None:
        waiting = self._waiting.setdefault(wave, [])
        waiting.append(rows)
        if len(waiting) == self._members[wave]:
            self._contract(self._waiting.pop(wave), 1 + wave * (self.anatomy.n_heads + 1))

    def _logits_gradient(self, grad: Tensor) -> None:
        with torch.no_grad():
            self._arrive(self.anatomy.n_layers, self._residual_rows(grad, len(self.anatomy.targets) - 1))

    def _mlp_gradient(self, index: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            with torch.no_grad():
                self._arrive(self._mlp_wave[index], self._residual_rows(grad, self.anatomy.mlp_target(index)))
                self.scores[:, self.anatomy.mlp_source(index), self.anatomy.mlp_target(index)] = 0  # not an edge

        return hook

    def _projection_gradient(self, index: int, projection: Projection) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            reads = self._reads[index]
            for kind in projection.kinds:
                reads.grads[kind] = grad[..., projection.rows(kind, copied=True)]
            if len(reads.grads) == len(KINDS):
                with torch.no_grad():
                    self._arrive(index, self._attention_rows(index, reads))
                self._reads[index] = _AttentionReads()

        return hook

    def _sum_over_points(self, grad: Tensor) -> Tensor:
        """[m B, T, ...] -> [B, T, ...], in at least float32."""
        return wide(grad.unflatten(0, (-1, len(self.scores))).sum(0, dtype=wide(grad[:0]).dtype))

    def _residual_rows(self, grad: Tensor, column: int) -> _Rows:
        vectors = rearrange(self._sum_over_points(grad), "b t m -> (b t) 1 m")
        return _Rows(vectors, torch.tensor([column], device=grad.device))

    def _attention_rows(self, index: int, reads: _AttentionReads) -> _Rows:
        """The gradients at the copies of one layer's q, k and v: see the formulas at the top."""
        anatomy, layer = self.anatomy, self.anatomy.layers[index]
        heads, width, model_width = anatomy.n_heads, anatomy.head_dim, anatomy.d_model
        columns = self._attention_columns(index)
        vectors = self.sources.new_empty(len(self.scores) * self.length, 3 * heads, model_width)
        norm = layer.attn_norm
        r = weight = None
        if norm is not None:
            assert reads.x is not None
            x = norm.centre(wide(reads.x))
            r, weight = norm.inverse_scale(x), norm.weight  # r: [m B, T, 1]
        numbers = []
        corrections = []
        for place, (kind, norm_behind, matrix, bias) in enumerate(_maps(layer, norm, model_width)):
            grads = wide(reads.grads[kind]).unflatten(-1, (heads, width))  # g_h, [m B, T, H, D]
            if r is not None:
                grads = grads * r[..., None]  # r_k g_h
            y = wide(reads.y[kind])
            through = matrix if weight is None else matrix * weight  # W w, [(H or K) D, M]
            if norm is not None:
                through = norm.centre(through)
            off_bias = y if norm is None else y - bias  # W (w * xhat)
            along_y = None
            if norm_behind is not None:
                scale = norm_behind.inverse_scale(y)  # r'
                scaled = norm_behind.weight  # w'
                grads = grads * scale[..., None]
                yhat = y * scale
                along_y = _by_head(grads, yhat * scaled) / y.shape[-1]  # r r' (yhat_h . (w' g)_h) / width, [m B, T, H]
                corrections.append(_Correction(yhat @ through, along_y, columns[place * heads : (place + 1) * heads]))
                through = through * scaled[:, None]
            if norm is not None:
                own = off_bias if norm_behind is None else off_bias * norm_behind.weight
                along_x = _by_head(grads, own)
                if along_y is not None:
                    along_x = along_x - along_y * (yhat * off_bias).sum(-1, keepdim=True)
                numbers.append(along_x / model_width)
            a = rearrange(self._sum_over_points(grads), "b t h d -> h (b t) d")
            per_head = through.unflatten(0, (-1, width))  # [H or K, D, M]
            for head in range(heads):
                torch.mm(a[head], per_head[head * len(per_head) // heads], out=vectors[:, place * heads + head])
        if r is not None:
            corrections.append(_Correction(x * r, torch.cat(numbers, -1), columns))
        return _Rows(vectors, columns, tuple(corrections))

    def _attention_columns(self, index: int) -> Tensor:
        """The targets of one layer's attention, in the order in which its rows are made: all q, all k, all v."""
        first = self.anatomy.attention_targets(index).start
        columns = [first + 3 * head + place for place in range(3) for head in range(self.anatomy.n_heads)]
        return torch.tensor(columns, device=self.scores.device)

    def _contract(self, rows: list[_Rows], n_sources: int) -> None:
        """Add the products of waiting gradients with the first `n_sources` sources to the scores."""
        sources = self.sources[:, :, :n_sources].flatten(0, 1)  # [B T, S', M]
        pairs = len(self.scores)
        corrections = [correction for row in rows for correction in row.corrections]
        blocks = [row.vectors for row in rows]
        blocks += [rearrange(c.vectors, "(k b) t m -> (b t) k m", b=pairs) for c in corrections]
        products = torch.bmm(sources, torch.cat(blocks, 1).mT)  # [B T, S', all columns]
        products = products.unflatten(0, (pairs, self.length))
        at = 0
        for row in rows:
            width = row.vectors.shape[1]
            self.scores[:, :n_sources, row.columns] += products[..., at : at + width].sum(1)
            at += width
        for correction in corrections:
            points = len(correction.vectors) // pairs
            along = rearrange(products[..., at : at + points], "b t s k -> b s (t k)")
            numbers = rearrange(correction.numbers, "(k b) t r -> b (t k) r", b=pairs)
            self.scores[:, :n_sources, correction.columns] -= torch.bmm(along, numbers)
            at += points


def _maps(layer: Layer, norm: Norm | None, width: int) -> Iterator[tuple[Kind, Norm | None, Tensor, Tensor]]:
    """For q, k and v: the norm behind the projection, its matrix [out, M], and its output where xhat is 0, [out]."""
    for projection in layer.projections:
        matrix, bias = linear_map(projection.module, width)
        if norm is not None and norm.bias is not None:
            bias = bias + matrix @ norm.bias
        for kind in projection.kinds:
            rows = projection.rows(kind)
            yield kind, projection.norm, matrix[rows], bias[rows]


def _by_head(grads: Tensor, states: Tensor) -> Tensor:
    """Dot products of gradients [..., H, D] with states [..., (H or K) D], each query head with its own: [..., H]."""
    states = states.unflatten(-1, (-1, grads.shape[-1]))
    groups = grads.unflatten(-2, (states.shape[-2], -1))  # the query heads of one key/value head side by side
    return (groups * states[..., None, :]).sum(-1).flatten(-2)


def source_differences(anatomy: Anatomy, ends: Endpoints) -> Tensor:
    """delta_s of every source, [B, T, S, M]: what it adds to the residual stream, corrupted - clean."""
    batch, length, width = ends.input.shape
    out = ends.input.new_empty(batch * length, len(anatomy.sources), width)
    out[:, 0] = ends.input.flatten(0, 1)
    for index, layer in enumerate(anatomy.layers):
        matrix, _ = linear_map(layer.out, anatomy.n_heads * anatomy.head_dim)
        per_head = rearrange(layer.scaled(matrix.T), "(h d) m -> h d m", h=anatomy.n_heads)
        z = rearrange(ends.z[index], "b t (h d) -> h (b t) d", h=anatomy.n_heads)
        first = anatomy.head_source(index).start
        for head in range(anatomy.n_heads):
            torch.mm(z[head], per_head[head], out=out[:, first + head])
        out[:, anatomy.mlp_source(index)] = ends.mlp[index].flatten(0, 1)
    return out.unflatten(0, (batch, length))
