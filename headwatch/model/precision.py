"""The precision in which scores are computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; scores are accumulated in float32 or float64, whatever the model's dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 matrix products in float32 inside the block, where the user allows TF32; restore it after.

    torch has two interfaces for this setting and refuses a mixture, so the one that the user has used is used.
    """
    matmul = torch.backends.cuda.matmul
    if getattr(matmul, "fp32_precision", "tf32") != "tf32":  # torch before 2.9 has the older interface alone
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the setting was made by the newer interface
        before = None
    try:
        if before is None:
            matmul.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if before is None:
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision(before)
