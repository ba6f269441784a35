"""Launches of the Triton kernels; on meta tensors they are reported to observers instead, with what
they read and write.

triton is an optional dependency, imported when a kernel is first launched. With TRITON_INTERPRET=1 in the environment
before that, Triton runs the kernels on CPU tensors.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from headwatch.errors import UserError, type_and_message

observers: list[Callable[[str, list[Tensor], int], None]] = []
"""Called for every launch on meta tensors with the kernel's name, its tensors, and its floating-point operations."""

KERNELS = ("auto", "torch", "triton")
BLOCK = 1024
"""Entries that a program of an elementwise kernel computes."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class KernelError(RuntimeError):
    """A kernel could not be compiled or launched."""


def installed() -> bool:
    """Whether triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs kernels on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launch(name: str, grid: tuple[int, ...], arguments: list[Any], operations: int = 0, **constants: Any) -> None:
    """Launch a kernel of triton_code.py.

    Args:
        name: the kernel.
        grid: number of programs, in up to three dimensions.
        arguments: its arguments, in order.
        operations: floating-point operations of its matrix products, for the cost model.
        constants: its compile-time constants.

    Raises:
        KernelError: it could not be compiled or launched.
    """
    tensors = list({id(each): each for each in arguments if isinstance(each, Tensor)}.values())
    if tensors[0].device.type == "meta":
        for observe in observers:
            observe(name, tensors, operations)
        return
    device = tensors[0].device
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            getattr(_code(), name)[grid](*arguments, **constants)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = type_and_message(error, 200)
        raise KernelError(f'the kernel {name} failed ({reason}); kernels="torch" runs without kernels') from error


@cache
def _code() -> Any:
    return importlib.import_module("headwatch.kernels.triton_code")


def power_of_two(n: int) -> int:
    """The smallest power of two of at least n."""
    return 1 << max(0, n - 1).bit_length()


def blocks(rows: int, width: int) -> tuple[int, int]:
    """Rows per program and the padded width of a row, about BLOCK entries; both are powers of two."""
    block = power_of_two(width)
    return min(power_of_two(rows), max(1, BLOCK // block)), block


def check_kernels(choice: object) -> None:
    """Raise UserError unless `choice` is one of KERNELS."""
    if choice not in KERNELS:
        raise UserError(f"kernels={choice!r} is unknown; use one of {', '.join(KERNELS)}")


def require_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError where kernels="triton" cannot run on a model of this device and dtype."""
    if not installed():
        raise UserError('kernels="triton" needs triton; install headwatch[gpu], or use kernels="auto"')
    if device.type not in ("cuda", "meta") and not interpreted():
        raise UserError(
            f'kernels="triton" needs a CUDA device, but the model is on {device.type}; use kernels="auto" (for tests, '
            "TRITON_INTERPRET=1 in the environment runs the kernels slowly on a CPU)"
        )
    if dtype not in DTYPES:
        raise UserError(
            f'kernels="triton" computes in float32, but the model is {str(dtype).removeprefix("torch.")}; '
            'use kernels="torch"'
        )
