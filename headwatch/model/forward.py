"""The forward pass of the unmodified model, under the caller's autocast setting."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from headwatch.model.hooks import overridden

Call = Callable[..., Any]
"""The model's forward pass as `callers_autocast` yields it."""

# Attention functions that require arguments which only their own trainer passes: TRL's AsyncGRPO packs a tree.
_TRAINERS_OWN = {"tree_fa3"}


@contextmanager
def callers_autocast(model: nn.Module, device: torch.device) -> Iterator[Call]:
    """Disable autocast for the block; the yielded forward pass runs under the setting in force outside it.

    Scores are thus summed in full precision. Compiled parts of the model run eagerly: compiling them again with hooks
    would take longer than the pass and count against the recompilation limit of the training.

    An attention function that only the trainer can call (AsyncGRPO's) is replaced by sdpa, which computes the same.

    Yields:
        The model's forward pass.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        with torch.compiler.set_stance("force_eager"):
            yield model
        return
    outside = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def call(**inputs: Any) -> Any:
        with outside:
            return model(**inputs)

    with torch.compiler.set_stance("force_eager"), torch.autocast(kind, enabled=False), _callable_attention(model):
        yield call


def under_autocast(device: torch.device) -> bool:
    """Whether autocast is enabled for the device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


@contextmanager
def _callable_attention(model: nn.Module) -> Iterator[None]:
    """Use sdpa inside the block where attention needs arguments that only the trainer passes."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    with ExitStack() as stack:
        for config in configs.values():
            if getattr(config, "_attn_implementation_internal", None) in _TRAINERS_OWN:
                stack.enter_context(overridden(config, _attn_implementation_internal="sdpa"))
        yield
