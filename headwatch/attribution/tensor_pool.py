"""Reuse of large temporary tensors, and their division into pieces that fit memory the process already holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_BYTES = 24 * 2**20
"""Size limit of a piece on the CPU. glibc maps allocations above 32 MiB afresh and unmaps them when freed; the page
faults took a twelfth of a pass (dev/log.md). Smaller pieces come from memory that the training step has freed.
"""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a batch, [B T]: all tokens of several pairs, or some tokens of one pair.

    Attributes:
        tokens: their positions among the B T tokens.
        pairs: the pairs that they belong to.
    """

    tokens: slice
    pairs: slice

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return int(self.tokens.stop - self.tokens.start)

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return int(self.pairs.stop - self.pairs.start)


def pieces(pairs: int, length: int, bytes_per_token: int, device: torch.device) -> list[Piece]:
    """Divide B T tokens into pieces of at most `MAX_BYTES` each; except on the CPU, one piece.

    Args:
        pairs: B.
        length: T.
        bytes_per_token: size of the tensor to be divided, per token.
        device: its device.
    """
    most = max(1, MAX_BYTES // bytes_per_token) if device.type == "cpu" else pairs * length
    if length <= most:
        at_once = most // length
        groups = [slice(first, min(first + at_once, pairs)) for first in range(0, pairs, at_once)]
        return [Piece(slice(group.start * length, group.stop * length), group) for group in groups]
    size = math.ceil(length / math.ceil(length / most))
    return [
        Piece(slice(pair * length + first, pair * length + min(first + size, length)), slice(pair, pair + 1))
        for pair in range(pairs)
        for first in range(0, length, size)
    ]


class TensorPool:
    """Pool of uninitialised tensors; released storage is reused."""

    def __init__(self) -> None:
        self._free: list[torch.UntypedStorage] = []

    def allocate(self, like: Tensor, shape: Sequence[int], capacity: int = 0) -> Tensor:
        """A tensor with the dtype and device of `like`.

        Args:
            like: sets dtype and device.
            shape: shape of the tensor.
            capacity: entries to reserve in new storage, for larger tensors later.
        """
        size = math.prod(shape)
        fitting = [s for s in self._free if s.nbytes() >= size * like.element_size() and s.device == like.device]
        if not fitting:
            return like.new_empty(max(capacity, size))[:size].view(*shape)
        storage = min(fitting, key=lambda s: s.nbytes())
        self._free = [s for s in self._free if s is not storage]
        return like.new_empty(0).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]

    def release(self, *tensors: Tensor) -> None:
        """Return tensors to the pool; they must not be read any more."""
        self._free += [tensor.untyped_storage() for tensor in tensors]
