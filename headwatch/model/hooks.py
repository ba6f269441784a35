"""Hooks that are there for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(*handles: RemovableHandle) -> Iterator[None]:
    """Take the hooks off on leaving."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
