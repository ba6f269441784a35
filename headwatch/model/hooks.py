"""Temporary hooks and attributes: everything set here is undone when the block ends, also after an exception."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

_ABSENT = object()


@contextmanager
def hooked(*handles: RemovableHandle) -> Iterator[None]:
    """Remove these hooks when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def overridden(owner: Any, **attributes: object) -> Iterator[None]:
    """Set attributes inside the block; restore them when it ends, or delete those that `owner` itself did not have.

    Args:
        owner: a module, a configuration or any other object.
        attributes: name and temporary value.
    """
    before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _ABSENT:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)


def has_own_forward(module: nn.Module) -> bool:
    """Whether the forward of a module was replaced on the instance, except by one that computes the same.

    The latter has a true attribute `same_function` and is set only inside a pass (headwatch/kernels/model_parts.py).
    """
    return "forward" in vars(module) and not getattr(vars(module)["forward"], "same_function", False)
