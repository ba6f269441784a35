"""Products of the kernels and of the pass, emulated on the CPU: what each precision costs against float64.

Tensor cores multiply exactly and add in float32, so a float32 product of rounded factors is what they compute.
"""

import pytest
import torch
from torch import Tensor

from headwatch.kernels.score_ops import PRECISION


def tf32(x: Tensor) -> Tensor:
    """Rounded to the nearest number with 10 bits after the point, as the hardware rounds a factor."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    if precision == "bf16":
        return a.bfloat16().float() @ b.bfloat16().float()
    if precision == "ieee":
        return a @ b
    big_a, big_b = tf32(a), tf32(b)
    if precision == "tf32":
        return big_a @ big_b
    small_a, small_b = tf32(a - big_a), tf32(b - big_b)
    return small_a @ big_b + big_a @ small_b + big_a @ big_b


@pytest.mark.parametrize("width", [64, 128, 4096], ids=["head of 64", "head of 128", "tokens x width"])
def test_three_tf32_products_are_as_good_as_float32(width: int) -> None:
    assert PRECISION == "tf32x3"
    generator = torch.Generator().manual_seed(width)
    a, b = torch.randn(96, width, generator=generator), torch.randn(width, 80, generator=generator)
    exact = a.double() @ b.double()
    errors = {
        name: float((product(a, b, name).double() - exact).abs().max() / exact.abs().max())
        for name in ("ieee", "tf32x3", "tf32", "bf16")
    }
    assert errors["ieee"] < 1e-6
    assert errors["tf32x3"] < 1e-6
    assert 5e-5 < errors["tf32"] < 1e-3  # why neither the kernels nor the pass use one TF32 product
    assert 5e-4 < errors["bf16"] < 1e-2  # float32 factors rounded to bf16: sources and gradients stay in float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_factors_in_16_bits_add_no_error_to_float32_sums(dtype: torch.dtype) -> None:
    """A model's weights and activations in 16 bits: TF32 holds them exactly, so one product of them is exact too."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(96, 96, generator=generator).to(dtype) for _ in range(2))
    exact = a.double() @ b.double()
    for precision in ("ieee", "tf32"):
        found = product(a.float(), b.float(), precision).double()
        assert float((found - exact).abs().max() / exact.abs().max()) < 1e-6
