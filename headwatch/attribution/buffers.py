"""Large arrays that one batch after the other uses: memory fresh from the system costs time on the first touch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Buffers:
    """Lends arrays without content, and lends what came back again."""

    def __init__(self) -> None:
        self._spare: list[torch.UntypedStorage] = []

    def take(self, like: Tensor, shape: Sequence[int], most: int | None = None) -> Tensor:
        """An array of this shape, of the dtype and device of `like`; `most`: how many entries will be wanted later."""
        bytes_wanted = math.prod(shape) * like.element_size()
        fitting = [s for s in self._spare if s.nbytes() >= bytes_wanted and s.device == like.device]
        if not fitting:
            return like.new_empty(max(most or 0, math.prod(shape)))[: math.prod(shape)].view(*shape)
        storage = min(fitting, key=lambda s: s.nbytes())
        self._spare = [s for s in self._spare if s is not storage]
        return like.new_empty(0).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]

    def give(self, *arrays: Tensor) -> None:
        """Take arrays back, which nobody reads any more."""
        self._spare += [array.untyped_storage() for array in arrays]
