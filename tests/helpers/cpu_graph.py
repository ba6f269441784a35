"""A CUDA graph on the CPU: records the operations of a block by address, and repeats them without any Python.

A CUDA graph repeats kernels at fixed addresses. So does this: every operation runs again on the tensors it had, and
writes its result where the recorded one was. What the block decided in Python, or took from anywhere but its inputs, is
frozen, as in a CUDA graph. Reading a number, which waits for the device, ends the recording with an error.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

_WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "_is_all_true", "unique"}
_NOTHING_WRITTEN = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "set_", "resize_"}


class CpuGraph:
    """One recorded block.

    Attributes:
        calls: how often it was repeated.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.calls = 0
        self._made: set[int] = set()
        self._read: dict[int, Tensor] = {}
        self._views: list[Any] = []  # kept alive, and with them their addresses

    def record(self, work: Callable[[], T]) -> T:
        """Run the block once; transformers makes its masks as it does while CUDA records."""
        with patch.object(torch.cuda, "is_current_stream_capturing", lambda: True), _Recording(self):
            return work()

    def replay(self) -> None:
        """Repeat its operations."""
        self.calls += 1
        with torch.no_grad():
            for function, args, kwargs, out in self.operations:
                new = function(*args, **kwargs)
                for old, own in zip(tree_leaves(out), tree_leaves(new), strict=True):
                    if isinstance(old, Tensor) and old is not own:
                        old.copy_(own)

    def outside(self) -> list[Tensor]:
        """The tensors that it reads and did not make, by storage."""
        return [tensor for key, tensor in self._read.items() if key not in self._made]

    def add(self, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record one operation."""
        name = function.overloadpacket.__name__
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        known = {_key(each) for each in inputs}
        fresh = [each for each in tree_leaves(out) if isinstance(each, Tensor) and _key(each) not in known]
        for each in inputs:
            if _key(each) not in self._made:
                self._read.setdefault(_key(each), each)
        self._made.update(map(_key, fresh))
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments)
        if name not in _NOTHING_WRITTEN and (fresh or writes):
            self.operations.append((function, args, kwargs, out if fresh else None))
        else:
            self._views.append(out)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Recording(TorchDispatchMode):
    def __init__(self, graph: CpuGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket.__name__ in _WAITS:
            raise RuntimeError(f"{function.overloadpacket.__name__} waits for the device")
        out = function(*args, **kwargs)
        self._graph.add(function, args, kwargs, out)
        return out


class CpuCapture:
    """Records graphs as `graphs.CudaCapture` does, and keeps them."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.graphs: list[CpuGraph] = []

    def __call__(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph = CpuGraph()
        scores = graph.record(work)
        self.graphs.append(graph)
        return graph.replay, scores

    def memory_mb(self) -> float:
        """Not known here."""
        return 0.0
