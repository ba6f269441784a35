"""Observers of the clean runs of a pass."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from headwatch.attribution.metrics import Reads

Observer = Callable[[Tensor, Tensor, Reads], None]
"""observe(pairs [B], clean logits at the read positions [B, P, V], reads), called for every batch."""


def renumbered(observe: Observer | None, rows: Sequence[int]) -> Observer | None:
    """An observer for some pairs of a probe set, which passes on their numbers in the whole set."""
    if observe is None:
        return None
    numbers = torch.tensor(rows, dtype=torch.long)

    def in_whole_set(pairs: Tensor, logits: Tensor, reads: Reads) -> None:
        observe(numbers[pairs.cpu()], logits, reads)

    return in_whole_set
