"""Operations of a model's own layers as one kernel each, with gradients of the activations alone.

A pass needs no gradients of weights, so the backward kernels compute none. `*_plain` are the operations as the models
of transformers compute them; tests compare both.
"""

from typing import Any

import torch
from torch import Tensor

from headwatch.kernels.launch import launch, power_of_two

_BLOCK = 1024  # entries per program of an elementwise kernel


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


class RmsNorm(torch.autograd.Function):
    """`rms_norm_plain` as one kernel forward and one backward, for x and weight of one dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., M], [M] -> [..., M]."""
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps, width, y = eps, x.shape[-1], torch.empty_like(x)
        launch("rms_norm", (x.numel() // width,), [x, weight, y, width, eps], BLOCK=power_of_two(width))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        x, weight = ctx.saved_tensors
        width, dx = x.shape[-1], torch.empty_like(x)
        arguments = [grads[0].contiguous(), x, weight, dx, width, ctx.eps]
        launch("rms_norm_backward", (x.numel() // width,), arguments, BLOCK=power_of_two(width))
        return dx, None, None


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
    arguments = [q, k, cos, sin, q_out, k_out, length, heads, width // 2, *strides]
    grid = (pairs * length, heads + k.shape[1])
    launch("rotary", grid, arguments, BACKWARD=backward, BLOCK=power_of_two(width // 2))
    return q_out, k_out


class AfterPrefix(torch.autograd.Function):
    """Keys and values of the prefix, then those of the runs: two copies in one kernel."""

    @staticmethod
    def forward(ctx: Any, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[B, K, C, D] twice, [n B, K g, T, D] twice -> [n B, K g, C + T, D] twice."""
        pairs, kv_heads, ctx.prefix, width = prefix_k.shape
        rows, heads, length, _ = k.shape
        if prefix_k.stride() != prefix_v.stride() or prefix_k.stride(-1) != 1:
            prefix_k, prefix_v = prefix_k.contiguous(), prefix_v.contiguous()
        k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (k, v))
        total, block = ctx.prefix + length, 32
        k_out, v_out = (k.new_empty(rows, heads, total, width) for _ in range(2))
        sizes = [pairs, heads, heads // kv_heads, ctx.prefix, length, width]
        strides = [*prefix_k.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
        arguments = [prefix_k, prefix_v, k, v, k_out, v_out, *sizes, *strides]
        grid = (rows, heads, -(-total // block))
        launch("after_prefix", grid, arguments, BLOCK_T=block, BLOCK=power_of_two(width))
        return k_out, v_out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor]:
        """The gradients of the runs' keys and values, as views."""
        return None, None, grads[0][:, :, ctx.prefix :], grads[1][:, :, ctx.prefix :]
