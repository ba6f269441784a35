"""Large arrays that one batch after the other uses, in pieces that the C library can take from memory it has."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_BYTES = 24 * 2**20
"""Of an array on the CPU. What is larger than 32 MiB glibc takes fresh from the system, and gives back at once; every
page of it is then touched for the first time, which took a twelfth of a pass (dev/log.md). Smaller arrays come from
what the training step has used and freed.
"""


@dataclass(frozen=True)
class Piece:
    """Some of a batch's tokens [B T]: all of several pairs, or a part of one pair's."""

    tokens: slice
    pairs: slice

    @property
    def n_pairs(self) -> int:
        """How many pairs these tokens belong to."""
        return int(self.pairs.stop - self.pairs.start)


def pieces(pairs: int, length: int, bytes_a_token: int, device: torch.device) -> list[Piece]:
    """Cut the tokens [B T] so that an array of `bytes_a_token` each is small enough; in one piece but on the CPU."""
    most = max(1, MOST_BYTES // bytes_a_token) if device.type == "cpu" else pairs * length
    if length <= most:
        at_once = most // length
        firsts = range(0, pairs, at_once)
        groups = [slice(first, min(first + at_once, pairs)) for first in firsts]
        return [Piece(slice(group.start * length, group.stop * length), group) for group in groups]
    size = math.ceil(length / math.ceil(length / most))
    return [
        Piece(slice(pair * length + first, pair * length + min(first + size, length)), slice(pair, pair + 1))
        for pair in range(pairs)
        for first in range(0, length, size)
    ]


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
