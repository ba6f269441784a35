"""Calling the unmodified model: under the caller's own autocast setting, and nothing else under it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[..., Any]
"""The model's forward pass, under the caller's own autocast setting: see `callers_autocast`."""


def wide(tensor: Tensor) -> Tensor:
    """At least float32: everything is accumulated there, whatever the model's dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def callers_autocast(model: nn.Module, device: torch.device) -> Iterator[Call]:
    """Inside, autocast holds for the model, as it did outside, and for nothing else: scores are summed in full.

    Compiled parts of the model run as they were written: with hooks on them they would be compiled anew for each pass,
    which takes longer than the pass and uses up the recompilations that training is allowed.
    """
    kind = device.type
    outside = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def call(**inputs: Any) -> Any:
        with outside:
            return model(**inputs)

    with torch.compiler.set_stance("force_eager"), torch.autocast(kind, enabled=False):
        yield call
