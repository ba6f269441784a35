"""Large arrays that one batch after the other uses: memory fresh from the system costs time on the first touch."""

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 2**21  # bytes of a huge page on most machines


class Buffers:
    """Lends arrays without content, and lends what came back again."""

    def __init__(self) -> None:
        self._spare: list[torch.UntypedStorage] = []

    def take(self, like: Tensor, shape: Sequence[int], most: int | None = None) -> Tensor:
        """An array of this shape, of the dtype and device of `like`; `most`: how many entries will be wanted later."""
        bytes_wanted = math.prod(shape) * like.element_size()
        fitting = [s for s in self._spare if s.nbytes() >= bytes_wanted and s.device == like.device]
        if not fitting:
            return _fresh(like, max(most or 0, math.prod(shape)))[: math.prod(shape)].view(*shape)
        storage = min(fitting, key=lambda s: s.nbytes())
        self._spare = [s for s in self._spare if s is not storage]
        return like.new_empty(0).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]

    def give(self, *arrays: Tensor) -> None:
        """Take arrays back, which nobody reads any more."""
        self._spare += [array.untyped_storage() for array in arrays]


def _fresh(like: Tensor, entries: int) -> Tensor:
    """Memory without content, [entries]; on the CPU in huge pages where the system has them.

    The C library takes arrays of this size fresh from the system, 4 KiB at a first touch.
    """
    wanted = entries * like.element_size()
    if like.device.type == "cpu" and wanted >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, wanted, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=like.dtype)  # holds the memory
    return like.new_empty(entries)
