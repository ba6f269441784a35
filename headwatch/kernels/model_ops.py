"""Operations of a model's own layers as one kernel each, with gradients of the activations alone.

A pass needs no gradients of weights, so the backward kernels compute none. `*_plain` are the operations as the models
of transformers compute them; tests compare both.
"""

from typing import Any

import torch
from torch import Tensor

from headwatch.kernels.launch import BLOCK as _BLOCK
from headwatch.kernels.launch import blocks, launch


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / rms(x), [..., M], as LlamaRMSNorm computes it."""
    states = x.to(torch.float32)
    states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + eps)
    return weight * states.to(x.dtype)


def swiglu_plain(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, as LlamaMLP computes it."""
    return torch.nn.functional.silu(gate) * up


def rotary_plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of queries [B, H, T, D] and keys [B, K, T, D] by cos and sin [B, T, D], as Llama computes it."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def rotated(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return torch.cat((-high, low), -1)

    return q * cos + rotated(q) * sin, k * cos + rotated(k) * sin


def linear_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """weight @ x + bias, [..., M] -> [..., W], and x for the next linear map of the same input."""
    return torch.nn.functional.linear(x, weight, bias), x


class Linear(torch.autograd.Function):
    """`linear_plain`, in whose backward pass the gradient of x is added to that of the next map in one product.

    Where several linear maps read one x, autograd computes one product for each and then their sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """[..., M], [W, M], [W] -> [..., W], [..., M]; the second output is a view for one other `Linear` alone."""
        ctx.save_for_backward(weight)
        ctx.set_materialize_grads(False)
        return torch.nn.functional.linear(x, weight, bias), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        """The gradient of x, written into that of the second output, which nobody else holds."""
        (weight,), (grad, rest) = ctx.saved_tensors, grads
        if grad is None:
            return rest, None, None
        rows = grad.flatten(0, -2)
        if rest is None:
            return (rows @ weight).view(*grad.shape[:-1], -1), None, None
        rest.view(-1, rest.shape[-1]).addmm_(rows, weight)
        return rest, None, None


class RmsNorm(torch.autograd.Function):
    """`rms_norm_plain` as one kernel forward and one backward, for x and weight of one dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., M], [M] -> [..., M]."""
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps, y = eps, torch.empty_like(x)
        _rows("rms_norm", [x, weight, y], eps)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        x, weight = ctx.saved_tensors
        dx = torch.empty_like(x)
        _rows("rms_norm_backward", [grads[0].contiguous(), x, weight, dx], ctx.eps)
        return dx, None, None


def _rows(name: str, tensors: list[Tensor], eps: float) -> None:
    """Launch a kernel over rows of M entries, as many per program as fit in one block."""
    width = tensors[0].shape[-1]
    rows = tensors[0].numel() // width
    at_once, block = blocks(rows, width)
    launch(name, (-(-rows // at_once),), [*tensors, rows, width, eps], ROWS=at_once, BLOCK=block)


class SwiGlu(torch.autograd.Function):
    """`swiglu_plain` as one kernel forward and one backward; keeps both factors alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Two tensors of one shape and dtype."""
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        launch("swiglu", (-(-out.numel() // _BLOCK),), [gate, up, out, out.numel()], BLOCK=_BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of both factors."""
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        arguments = [grads[0].contiguous(), gate, up, d_gate, d_up, gate.numel()]
        launch("swiglu_backward", (-(-gate.numel() // _BLOCK),), arguments, BLOCK=_BLOCK)
        return d_gate, d_up


class Rotary(torch.autograd.Function):
    """`rotary_plain` as one kernel forward and one backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, T, D], [B, K, T, D], [B or 1, T, D] twice; any strides with contiguous D."""
        ctx.save_for_backward(cos, sin)
        return _rotary(q, k, cos, sin, backward=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients of queries and keys."""
        cos, sin = ctx.saved_tensors
        return *_rotary(grads[0], grads[1], cos, sin, backward=True), None, None


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    q, k, cos, sin = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, cos, sin))
    if sin.stride() != cos.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    pairs, heads, length, width = q.shape
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)  # in the order of memory of q and k, if they are dense
    of_batch = 0 if len(cos) == 1 else cos.stride(0)
    strides = [*q.stride()[:3], *k.stride()[:3], of_batch, cos.stride(1), *q_out.stride()[:3], *k_out.stride()[:3]]
    kv_heads, tokens = k.shape[1], pairs * length
    at_once, block = blocks(tokens * heads, width // 2)
    arguments = [q, k, cos, sin, q_out, k_out, tokens, length, heads, kv_heads, width // 2, *strides]
    grid = (-(-tokens * heads // at_once) + -(-tokens * kv_heads // at_once),)
    launch("rotary", grid, arguments, BACKWARD=backward, ROWS=at_once, BLOCK=block)
    return q_out, k_out


class AfterPrefix(torch.autograd.Function):
    """Keys and values of the prefix, then those of the runs, repeated for all query heads: one kernel each way."""

    @staticmethod
    def forward(
        ctx: Any, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor, heads: int
    ) -> tuple[Tensor, Tensor]:
        """[B, K', C, D] twice, [n B, K, T, D] twice -> [n B, H, C + T, D] twice; K' and K divide H."""
        pairs, prefix_heads, ctx.prefix, width = prefix_k.shape
        runs, kv_heads, length, _ = k.shape
        ctx.shape = k.shape
        if prefix_k.stride() != prefix_v.stride() or prefix_k.stride(-1) != 1:
            prefix_k, prefix_v = prefix_k.contiguous(), prefix_v.contiguous()
        k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (k, v))
        total = ctx.prefix + length
        k_out, v_out = (k.new_empty(runs, heads, total, width) for _ in range(2))
        rows = runs * heads * total
        at_once, block = blocks(rows, width)
        sizes = [rows, pairs, heads, heads // prefix_heads, heads // kv_heads, ctx.prefix, length, width]
        strides = [*prefix_k.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
        arguments = [prefix_k, prefix_v, k, v, k_out, v_out, *sizes, *strides]
        launch("after_prefix", (-(-rows // at_once),), arguments, ROWS=at_once, BLOCK=block)
        return k_out, v_out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor, None]:
        """The gradients of the runs' keys and values; as views where no copies have to be summed."""
        runs, kv_heads, length, width = ctx.shape
        group = grads[0].shape[1] // kv_heads
        if group == 1:
            return None, None, grads[0][:, :, ctx.prefix :], grads[1][:, :, ctx.prefix :], None
        gk, gv = (each if each.stride(-1) == 1 else each.contiguous() for each in grads)
        dk, dv = (gk.new_empty(runs, length, kv_heads, width) for _ in range(2))
        rows = runs * length * kv_heads
        at_once, block = blocks(rows, width)
        sizes = [rows, kv_heads, group, ctx.prefix, length, width]
        arguments = [gk, gv, dk, dv, *sizes, *gk.stride()[:3], *gv.stride()[:3]]
        launch("after_prefix_backward", (-(-rows // at_once),), arguments, ROWS=at_once, BLOCK=block)
        return None, None, dk.transpose(1, 2), dv.transpose(1, 2), None
