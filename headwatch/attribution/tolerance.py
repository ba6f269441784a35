"""How far two ways to the same scores may differ on a device, before the faster one is not used."""

import torch
from torch import nn

from headwatch.model.forward import under_autocast

FLOAT32_LIMIT = 1e-4
"""Largest accepted difference of the mean scores over the largest mean score, in float32. Kernels and plain operations
differ there by the order of their sums alone: by up to 4e-6 in random models of three layers (tests/kernels), and more
where scores cancel. A kernel that is wrong is off by a large part of the score."""

HALF_LIMIT = 0.1
"""The same in 16 bits, also under autocast, where the plain scores are themselves off by up to 0.15 of the largest from
those in float32 (docs/evidence/reliability.md). Kernels round gradients at fewer places than the plain operations."""


def limit_of(model: nn.Module) -> float:
    """The largest accepted error for this model."""
    like = next(model.parameters())
    return FLOAT32_LIMIT if like.dtype == torch.float32 and not under_autocast(like.device) else HALF_LIMIT
