"""Edge scores, exact and fast: gradients of the inputs of q, k, v are kept in head space and expanded once a batch.

With xhat = x / rms(x), r = 1 / rms(x), w the norm's weight, y_h = W_h (w * xhat) + b_h a projection's output for head h
and g_h = dL/dy_h, the gradient at the head's own copy of the residual vector x, before the norm, is

    dL/dx = r (w * W_h^T g_h) - r xhat (g_h . (y_h - b_h)) / M

(the second term is the norm's own Jacobian). Summed over the path's points k, the first term needs only
A_h = sum_k r_k g_{h,k}, [T, D]; the second only the numbers c_{h,k} = r_k g_{h,k} . (y_{h,k} - b_h) / M beside
xhat_k. So

    edge(s, h) = sum_t  delta_s . (w * W_h^T A_h)  -  sum_{t,k} (delta_s . xhat_k) c_{h,k}

is one matrix product of the sources' differences with [w * W_h^T A_h, xhat_k], layer by layer, in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.anatomy import KINDS, Anatomy, Kind, linear_map
from headwatch.attribution.runs import Endpoints, wide


@dataclass
class _AttentionReads:
    """One attention layer, between its forward and its backward pass."""

    x: Tensor | None = None  # the residual vector before the norm, [m B, T, M]
    y: dict[Kind, Tensor] = field(default_factory=dict)  # projection outputs, [m B, T, (heads D)]
    grads: dict[Kind, Tensor] = field(default_factory=dict)  # their gradients, one copy a query head, [m B, T, (H D)]


@dataclass(frozen=True)
class _Rows:
    """Gradients of several targets, waiting for their product with the sources.

    Attributes:
        vectors: gradients expanded to residual space, [B T, R', M].
        columns: which targets they belong to, R' of them.
        xhat: normalised residual vectors, [B T, m, M], or None where a target needs none.
        c: how much of each xhat is taken off each target, [B, T m, R'].
    """

    vectors: Tensor
    columns: Tensor
    xhat: Tensor | None = None
    c: Tensor | None = None


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
        self._waiting: _Rows | None = None

    def start(self) -> list[RemovableHandle]:
        """Put the hooks on for one forward and backward pass; call `finish` after the backward pass."""
        self._reads = [_AttentionReads() for _ in self.anatomy.layers]
        self._waiting = None
        handles = [self.anatomy.final_norm.register_forward_pre_hook(self._read_alone(self._logits_gradient))]
        for index, layer in enumerate(self.anatomy.layers):
            handles.append(layer.attn_norm.module.register_forward_pre_hook(self._keep_x(index)))
            handles += [layer.projection(kind).register_forward_hook(self._read_by_head(index, kind)) for kind in KINDS]
            handles.append(layer.mlp_norm.register_forward_pre_hook(self._read_alone(self._mlp_gradient(index))))
        return handles

    def finish(self) -> Tensor:
        """Edge scores summed over the points of the path so far, [B, S, R]."""
        if self._waiting is not None:  # the first layer's attention, which reads the input alone
            self._contract([self._waiting], 1)
            self._waiting = None
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

    def _read_by_head(self, index: int, kind: Kind) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            self._reads[index].y[kind] = output.detach()
            copies = output if kind == "q" else repeat_heads(output, self.anatomy)
            copies.register_hook(self._projection_gradient(index, kind))
            return copies

        return hook

    # Backward: layers come last to first; a layer's attention waits for the MLP before it, so that the two are
    # multiplied with the sources, which both read, in one product.

    def _logits_gradient(self, grad: Tensor) -> None:
        with torch.no_grad():
            self._waiting = self._residual_rows(grad, len(self.anatomy.targets) - 1)

    def _mlp_gradient(self, index: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            with torch.no_grad():
                mine = self._residual_rows(grad, self.anatomy.mlp_target(index))
                rows = [mine] if self._waiting is None else [self._waiting, mine]
                self._waiting = None
                self._contract(rows, self.anatomy.mlp_source(index) + 1)
                self.scores[:, self.anatomy.mlp_source(index), self.anatomy.mlp_target(index)] = 0  # not an edge

        return hook

    def _projection_gradient(self, index: int, kind: Kind) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            reads = self._reads[index]
            reads.grads[kind] = grad
            if len(reads.grads) == len(KINDS):
                with torch.no_grad():
                    self._waiting = self._attention_rows(index, reads)
                self._reads[index] = _AttentionReads()

        return hook

    def _sum_over_points(self, grad: Tensor) -> Tensor:
        """[m B, T, ...] -> [B, T, ...], in at least float32."""
        return wide(grad.unflatten(0, (-1, len(self.scores))).sum(0, dtype=wide(grad[:0]).dtype))

    def _residual_rows(self, grad: Tensor, column: int) -> _Rows:
        vectors = rearrange(self._sum_over_points(grad), "b t m -> (b t) 1 m")
        return _Rows(vectors, torch.tensor([column], device=grad.device))

    def _attention_rows(self, index: int, reads: _AttentionReads) -> _Rows:
        anatomy, layer = self.anatomy, self.anatomy.layers[index]
        heads, width, model_width = anatomy.n_heads, anatomy.head_dim, anatomy.d_model
        assert reads.x is not None
        x = wide(reads.x)
        r = layer.attn_norm.inverse_scale(x)  # [m B, T, 1]
        weight = layer.attn_norm.weight
        rows = len(self.scores) * self.length
        vectors = x.new_empty(rows, 3 * heads, model_width)
        c = []
        for place, kind in enumerate(KINDS):
            matrix, bias = linear_map(layer.projection(kind), model_width)
            grads = wide(reads.grads[kind]).unflatten(-1, (heads, width)) * r[..., None]  # r_k g_h, [m B, T, H, D]
            y = (wide(reads.y[kind]) - bias).unflatten(-1, (-1, width))  # [m B, T, H or K, D]
            groups = grads.unflatten(2, (y.shape[2], -1))  # the query heads of one key/value head side by side
            c.append((groups * y[:, :, :, None]).sum(-1).flatten(2) / model_width)  # [m B, T, H]
            a = rearrange(self._sum_over_points(grads), "b t h d -> h (b t) d")
            per_head = (matrix * weight).unflatten(0, (-1, width))  # w * W_h, [H or K, D, M]
            for head in range(heads):
                torch.mm(a[head], per_head[head * len(per_head) // heads], out=vectors[:, place * heads + head])
        first = anatomy.attention_targets(index).start
        columns = [first + 3 * head + place for place in range(3) for head in range(heads)]
        return _Rows(
            vectors,
            torch.tensor(columns, device=x.device),
            xhat=rearrange(x * r, "(k b) t m -> (b t) k m", b=len(self.scores)),
            c=rearrange(torch.cat(c, -1), "(k b) t r -> b (t k) r", b=len(self.scores)),
        )

    def _contract(self, rows: list[_Rows], n_sources: int) -> None:
        """Add the products of waiting gradients with the first `n_sources` sources to the scores."""
        sources = self.sources[:, :, :n_sources].flatten(0, 1)  # [B T, S', M]
        blocks = [row.vectors for row in rows] + [row.xhat for row in rows if row.xhat is not None]
        products = torch.bmm(sources, torch.cat(blocks, 1).mT)  # [B T, S', all columns]
        products = products.unflatten(0, (len(self.scores), self.length))
        at = 0
        for row in rows:
            width = row.vectors.shape[1]
            self.scores[:, :n_sources, row.columns] += products[..., at : at + width].sum(1)
            at += width
        for row in rows:
            if row.xhat is not None and row.c is not None:
                along_xhat = rearrange(products[..., at : at + row.xhat.shape[1]], "b t s k -> b s (t k)")
                self.scores[:, :n_sources, row.columns] -= torch.bmm(along_xhat, row.c)
                at += row.xhat.shape[1]


def source_differences(anatomy: Anatomy, ends: Endpoints) -> Tensor:
    """delta_s of every source, [B, T, S, M]: what it adds to the residual stream, corrupted - clean."""
    batch, length, width = ends.input.shape
    out = ends.input.new_empty(batch * length, len(anatomy.sources), width)
    out[:, 0] = ends.input.flatten(0, 1)
    for index, layer in enumerate(anatomy.layers):
        matrix, _ = linear_map(layer.out, anatomy.n_heads * anatomy.head_dim)
        per_head = rearrange(matrix, "m (h d) -> h d m", h=anatomy.n_heads)
        z = rearrange(ends.z[index], "b t (h d) -> h (b t) d", h=anatomy.n_heads)
        first = anatomy.head_source(index).start
        for head in range(anatomy.n_heads):
            torch.mm(z[head], per_head[head], out=out[:, first + head])
        out[:, anatomy.mlp_source(index)] = ends.mlp[index].flatten(0, 1)
    return out.unflatten(0, (batch, length))


def repeat_heads(states: Tensor, anatomy: Anatomy) -> Tensor:
    """Give every query head its own copy of the key or value head that it reads: [..., (K D)] -> [..., (H D)]."""
    if anatomy.heads_per_kv == 1:
        return states.view_as(states)
    by_head = states.unflatten(-1, (anatomy.n_kv_heads, 1, anatomy.head_dim))
    return by_head.expand(*by_head.shape[:-2], anatomy.heads_per_kv, anatomy.head_dim).flatten(-3)
