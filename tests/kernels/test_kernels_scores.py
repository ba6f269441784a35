"""Fused sums of a pass against the same sums in float64."""

import pytest
import torch
from torch import Tensor

from headwatch.attribution.head_space import head_gradients
from headwatch.attribution.operations import PLAIN
from headwatch.attribution.run_layout import RunLayout
from headwatch.kernels import score_ops as ops
from headwatch.model.parts import Norm

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["stacked", "packed"])
LIMIT = 2e-6  # over the largest entry: inputs are exact in both, and everything is summed in float32


def random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def layout(packed: bool, pairs: int, runs: int) -> RunLayout:
    return RunLayout(pairs, runs, {} if packed else None)


@DTYPES
@PACKED
@pytest.mark.parametrize(("runs", "length", "width"), [(5, 3, 16), (1, 33, 6)])
def test_head_scores(
    runs: int, length: int, width: int, packed: bool, dtype: torch.dtype, device: torch.device
) -> None:
    own = layout(packed, 2, runs)
    gradients = own.by_run(own.join(random(runs, 2, length, 3 * width, dtype=dtype, device=device)))
    difference = random(2, length, 3 * width, device=device, seed=1)
    heads = random(2, 4, 3, device=device, seed=2)
    expected = heads.double()
    expected[:, 1] += (gradients.double().sum(0) * difference.double()).unflatten(-1, (3, -1)).sum((1, 3))
    ops.add_head_scores(gradients, difference, heads[:, 1])
    assert error(heads, expected) < LIMIT


@DTYPES
def test_difference(dtype: torch.dtype, device: torch.device) -> None:
    corrupted, clean = (random(2, 7, 77, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    found = ops.difference(corrupted, clean, 0.5)
    assert found.dtype == torch.float32
    assert error(found, (corrupted.double() - clean.double()) * 0.5) < LIMIT


@DTYPES
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 1, 7, 77), (2, 3, 4, 128)], ids=str)
def test_add_squares(shape: tuple[int, ...], count: int, dtype: torch.dtype, device: torch.device) -> None:
    """Of a stream in float32 and outputs in float32 or 16 bits, against the plain operation in float64."""
    states = [random(*shape, dtype=dtype if i else torch.float32, device=device, seed=i) for i in range(count)]
    scales = [3.0, 0.5, 7.0, 0.25][:count]
    before = random(*shape, device=device, seed=9).abs()
    found, expected = before.clone(), before.double()
    ops.add_squares(states, scales, found)
    PLAIN.add_squares([own.double() for own in states], scales, expected)
    assert error(found, expected) < LIMIT
    plain = before.clone()
    PLAIN.add_squares(states, scales, plain)
    assert error(found, plain) < LIMIT


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "packed", "dtype"),
    [
        (4, 2, 12, False, torch.bfloat16),
        (3, 3, 16, True, torch.float32),
        (2, 1, 80, True, torch.bfloat16),
        (18, 6, 64, False, torch.float32),  # two blocks of heads
    ],
)
def test_head_space_and_its_expansion(
    heads: int, kv_heads: int, width: int, packed: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """Against head_gradients in float64, expanded for every point and then summed."""
    runs, pairs, length, d_model, eps = 2, 2, 4, 70 if heads < 18 else 20, 1e-3
    own = layout(packed, pairs, runs)

    def states(columns: int, seed: int) -> Tensor:
        return own.by_run(own.join(random(runs, pairs, length, columns, dtype=dtype, device=device, seed=seed)))

    widths = [heads * width, kv_heads * width, kv_heads * width]
    gradients = [states(heads * width, seed) for seed in (1, 2, 3)]
    outputs = [states(columns, seed) for columns, seed in zip(widths, (4, 5, 6), strict=True)]
    biases = [random(columns, device=device, seed=seed) for columns, seed in zip(widths, (7, 8, 9), strict=True)]
    matrices = [
        random(columns, d_model, dtype=dtype, device=device, seed=seed)
        for columns, seed in zip(widths, (10, 11, 12), strict=True)
    ]
    x, norm = states(d_model, 13), torch.nn.RMSNorm(d_model, eps, device=device)
    norm.weight.data.copy_(random(d_model, device=device, seed=14))

    expected = []
    x64 = x.double()
    r = torch.rsqrt(x64.square().mean(-1, keepdim=True) + eps)
    for g, y, matrix, bias in zip(gradients, outputs, matrices, biases, strict=True):
        double = Norm(norm.double(), eps)
        factors = head_gradients(
            g.double(), y.double(), matrix.double(), bias.double(), heads, double, r, r / d_model, None
        )
        assert factors.scale is not None
        assert factors.along_input is not None
        first = torch.einsum(
            "nbthd,hdm->hnbtm", (g.double() * factors.scale).unflatten(-1, (heads, -1)), factors.matrices
        )
        second = torch.einsum("nbth,nbtm->hnbtm", factors.along_input, x64 * r)
        expected.append((first - second).sum(1).flatten(1, 2))
    weight = norm.weight.detach().float()

    space = ops.head_space(gradients, outputs, biases, x, eps, heads)
    for first, tokens in ((0, pairs * length), (3, 4))[:: 1 if heads < 18 else 2]:
        rows = torch.full((3 * heads, tokens, d_model), 7.0, device=device)
        ops.expand_head_space(space, matrices, weight, first, rows)
        assert error(rows, torch.cat(expected)[:, first : first + tokens]) < 5e-6


@DTYPES
def test_outputs_of_heads(dtype: torch.dtype, device: torch.device) -> None:
    z, matrix = random(5, 3 * 12, device=device), random(70, 3 * 12, dtype=dtype, device=device, seed=1)
    rows = torch.full((3, 5, 70), 7.0, device=device)
    ops.expand_outputs(z, matrix, 3, rows)
    assert error(rows, torch.einsum("thd,mhd->htm", *(s.double().unflatten(-1, (3, -1)) for s in (z, matrix)))) < LIMIT
