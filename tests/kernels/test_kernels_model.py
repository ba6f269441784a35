"""Fused norms, MLPs, rotary embeddings and prefix copies against the operations that they replace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from headwatch.kernels import model_ops as ops

# Largest error over the largest entry. In 16 bits the plain operations round every intermediate gradient.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16"])


def random(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).abs().max() / expected.abs().max())


def linear_readers(linear: Callable[..., Any], x: Tensor, weights: list[Tensor], bias: Tensor) -> tuple[Tensor, ...]:
    """Three linear maps of one input, the last two of which share its gradient with the map before."""
    outs = []
    for weight in weights:
        y, x = linear(x, weight, bias if weight is weights[1] else None)
        outs.append(y)
    return tuple(outs)


def compare(
    fused: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], fixed: tuple[Any, ...], limit: float
) -> None:
    """Outputs and gradients of the inputs, under one random gradient of the outputs."""
    found = []
    for function in (fused, plain):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = function(*leaves, *fixed)
        outs = out if isinstance(out, tuple) else (out,)
        seeds = [random(*o.shape, dtype=o.dtype, device=o.device, seed=9 + i) for i, o in enumerate(outs)]
        found.append([*outs, *torch.autograd.grad(outs, leaves, seeds)])
    for own, expected in zip(*found, strict=True):
        assert error(own, expected) < limit


@DTYPES
@pytest.mark.parametrize("shape", [(2, 3, 64), (5, 60), (7, 1, 1)], ids=str)
def test_linear_maps_of_one_input(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x, bias = (random(*s, dtype=dtype, device=device) for s in (shape, (6,)))
    weights = [random(w, shape[-1], dtype=dtype, device=device, seed=w) for w in (12, 6, 5)]
    compare(
        lambda x: linear_readers(ops.Linear.apply, x, weights, bias),
        lambda x: linear_readers(ops.linear_plain, x, weights, bias),
        [x],
        (),
        TOLERANCE[dtype],
    )


@DTYPES
@pytest.mark.parametrize("used", [(0, 2), (1,), (2,)], ids=str)
def test_linear_maps_without_a_gradient(used: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Only some of the outputs are read."""
    x, bias = random(3, 8, dtype=dtype, device=device), random(6, dtype=dtype, device=device)
    weights = [random(6, 8, dtype=dtype, device=device, seed=seed) for seed in (1, 2, 3)]

    def of(linear: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: tuple(linear_readers(linear, x, weights, bias)[i] for i in used)

    compare(of(ops.Linear.apply), of(ops.linear_plain), [x], (), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("shape", [(2, 3, 64), (1, 5, 60), (7, 1)], ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x, weight = (random(*s, dtype=dtype, device=device) for s in (shape, shape[-1:]))
    compare(ops.RmsNorm.apply, ops.rms_norm_plain, [3 * x], (weight, 1e-3), TOLERANCE[dtype])


@DTYPES
def test_swiglu(dtype: torch.dtype, device: torch.device) -> None:
    gate, up = (4 * random(3, 5, 73, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    compare(ops.SwiGlu.apply, ops.swiglu_plain, [gate, up], (), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("rows", [1, 2])
def test_rotary(rows: int, dtype: torch.dtype, device: torch.device) -> None:
    """Cos and sin of any values, so their halves differ; 12 is no power of two."""
    q, k = (random(2, 3, h, 12, dtype=dtype, device=device, seed=h).transpose(1, 2) for h in (4, 2))
    cos, sin = (random(rows, 3, 12, dtype=dtype, device=device, seed=seed) for seed in (7, 8))
    compare(ops.Rotary.apply, ops.rotary_plain, [q, k], (cos, sin), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("heads", [4, 8])
def test_after_prefix(heads: int, dtype: torch.dtype, device: torch.device) -> None:
    """8 heads: keys and values are repeated once more, and their gradients summed."""
    prefix = [random(2, 2, 33, 12, dtype=dtype, device=device, seed=seed) for seed in (1, 2)]
    own = [random(6, 5, 4, 12, dtype=dtype, device=device, seed=seed).transpose(1, 2) for seed in (3, 4)]

    def plain(k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.cat([p.repeat_interleave(2, 1).repeat(3, 1, 1, 1), x], 2).repeat_interleave(heads // 4, 1)
            for p, x in zip(prefix, (k, v), strict=True)
        )

    limit = 1e-9 if heads == 4 else TOLERANCE[dtype]
    compare(lambda k, v: ops.AfterPrefix.apply(*prefix, k, v, heads), plain, own, (), limit)
