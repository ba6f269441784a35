"""The precision in which scores are computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


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


class KeepFloat64(TorchFunctionMode):
    """Inside the block, float64 tensors stay float64 where a model casts to float32 (norms, softmax, routers).

    Without it a comparison in float64 has an error of about 1e-7.

    >>> with KeepFloat64():
    ...     torch.zeros(1, dtype=torch.float64).float().dtype
    torch.float64
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` without a cast of float64 to float32."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func is Tensor.to:
                args = (args[0], *(_kept(each) for each in args[1:]))
            if func in (Tensor.to, F.softmax, torch.softmax, Tensor.softmax, Tensor.type, Tensor.sum, torch.sum):
                kwargs = {name: _kept(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _kept(argument: Any) -> Any:
    """float32 as float64; every other argument as it is."""
    return torch.float64 if argument is torch.float32 else argument
