"""Counts kernels, bytes, operations, synchronisations and live memory of a pass, on meta tensors: no data, no GPU.

The pass runs as it is, on a model on the meta device. A dispatch mode sees every operation that a GPU would run as a
kernel; uploads of Python numbers are seen at `torch.tensor`. Attention by `scaled_dot_product_attention` counts as one
kernel forward and one backward, as the fused kernels of CUDA do; the kernels of headwatch/kernels report themselves.
The counts are deterministic.
"""

import traceback
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from headwatch.kernels import launch

# Operations that launch no kernel: views, allocations and reading a number (counted as a synchronisation).
FREE = {
    *("view", "_unsafe_view", "expand", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "detach"),
    *("permute", "as_strided", "alias", "split", "split_with_sizes", "unbind", "_reshape_alias", "diagonal"),
    *("lift_fresh", "view_as", "set_", "empty", "new_empty", "empty_like", "new_empty_strided", "empty_strided"),
    *("_local_scalar_dense", "resize_", "is_pinned", "_pin_memory", "unfold", "narrow", "real"),
}


@dataclass
class Counts:
    """What a pass did, in numbers.

    Attributes:
        kernels: of every kernel, (bytes read and written, operations, dtype).
        by_name: kernels by operation.
        bytes_by_name: bytes by operation.
        synchronisations: by what and where; the host waits for the device.
        uploads: asynchronous copies to the device, by where.
        downloads: asynchronous copies to the host, by where, in bytes.
        peak_bytes: most memory alive at once, beyond the weights.
    """

    kernels: list[tuple[int, int, torch.dtype]] = field(default_factory=list)
    by_name: Counter[str] = field(default_factory=Counter)
    bytes_by_name: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    synchronisations: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    downloads: Counter[str] = field(default_factory=Counter)
    live_bytes: int = 0
    peak_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read and written by all kernels."""
        return sum(entry[0] for entry in self.kernels)

    @property
    def operations(self) -> int:
        """Floating-point operations of the matrix products."""
        return sum(entry[1] for entry in self.kernels)

    def add(self, name: str, tensors: list[Tensor], operations: int) -> None:
        """Count one kernel that reads or writes these tensors."""
        size = sum(_touched(t) for t in tensors)
        self.kernels.append((size, operations, tensors[0].dtype))
        self.by_name[name] += 1
        self.bytes_by_name[name] += size


def _touched(tensor: Tensor) -> int:
    """Bytes of a tensor; an expanded dimension is read from cache."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else 1
    return size


def where() -> str:
    """The innermost line of headwatch and, if another library is on top, its line."""
    frames = [f for f in traceback.extract_stack() if "/headwatch/" in f.filename or "/transformers/" in f.filename]
    ours = next((f for f in reversed(frames) if "/headwatch/" in f.filename), None)
    shown = [frames[-1]] if frames else []
    if ours is not None and ours is not shown[0]:
        shown.append(ours)
    return " < ".join(f"{f.filename.split('/headwatch/')[-1].split('/transformers/')[-1]}:{f.lineno}" for f in shown)


class _Attention(torch.autograd.Function):
    """Attention as one kernel forward and one backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, counts: Counts) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.counts = counts
        ctx.products = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]
        out = torch.empty_like(q)
        counts.add("attention", [q, k, v, out, *([] if mask is None else [mask])], 4 * ctx.products)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        ctx.counts.add("attention backward", [q, k, v, grad, q, q, k, v], 10 * ctx.products)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None


class _Functions(TorchFunctionMode):
    """Replaces fused attention."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        return _Attention.apply(q, k, v, attn_mask, self.counts)


class _Dispatch(TorchDispatchMode):
    """Counts every operation on meta tensors."""

    def __init__(self, counts: Counts, weights: set[int]) -> None:
        super().__init__()
        self.counts, self._weights = counts, weights
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_meta = any(t.device.type == "meta" for t in inputs)
        if name in ("_local_scalar_dense", "is_nonzero", "item") and on_meta:
            self.counts.synchronisations[f"reading a number: {where()}"] += 1
            return _plausible(inputs[0])
        if name == "_to_copy" and on_meta and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return self._download(inputs[0], kwargs)
        if name == "copy_" and on_meta and args[0].device.type == "cpu":
            self._count_download(args[1], bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2])))
            return args[0]
        if name == "nonzero" and on_meta:
            self.counts.synchronisations[f"nonzero: {where()}"] += 1
        out = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not any(t.device.type == "meta" for t in outputs):
            return out
        if name in ("_to_copy", "copy_") and any(t.device.type == "cpu" and t.dim() for t in inputs):
            self._upload(kwargs)
        self._keep_alive(outputs)
        if name not in FREE:
            count = flop_registry.get(function.overloadpacket)
            self.counts.add(name, inputs + outputs, 0 if count is None else count(*args, **kwargs, out_val=out))
        return out

    def _upload(self, kwargs: dict[str, Any]) -> None:
        if kwargs.get("non_blocking"):
            self.counts.uploads[where()] += 1
        else:
            self.counts.synchronisations[f"upload: {where()}"] += 1

    def _download(self, tensor: Tensor, kwargs: dict[str, Any]) -> Tensor:
        self._count_download(tensor, bool(kwargs.get("non_blocking")))
        return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)

    def _count_download(self, tensor: Tensor, asynchronous: bool) -> None:
        if asynchronous:
            self.counts.downloads[where()] += tensor.nbytes
        else:
            self.counts.synchronisations[f"download: {where()}"] += 1

    def _keep_alive(self, outputs: list[Tensor]) -> None:
        for tensor in outputs:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if tensor.device.type != "meta" or key in self._alive or key in self._weights:
                continue
            self._alive[key] = storage.nbytes()
            self.counts.live_bytes += storage.nbytes()
            self.counts.peak_bytes = max(self.counts.peak_bytes, self.counts.live_bytes)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.counts.live_bytes -= self._alive.pop(key, 0)


def _plausible(tensor: Tensor) -> Any:
    """A number for a tensor without data: flags are false, errors 0."""
    if tensor.dtype == torch.bool:
        return False
    return 0.0 if tensor.dtype.is_floating_point else 0


@contextmanager
def counting(model: torch.nn.Module) -> Iterator[Counts]:
    """Count everything that the block runs on the meta device."""
    counts = Counts()
    weights = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    tensor = torch.tensor

    def upload(values: Any, **options: Any) -> Tensor:
        out = tensor(values, **options)
        if out.device.type == "meta" and out.numel():
            counts.synchronisations[f"upload of a list: {where()}"] += 1
        return out

    launch.observers.append(counts.add)
    try:
        with patch.object(torch, "tensor", upload), _Functions(counts), _Dispatch(counts, weights):
            yield counts
    finally:
        launch.observers.remove(counts.add)


def counted(model: torch.nn.Module, run: Callable[[], object]) -> Counts:
    """The counts of one call."""
    with counting(model) as counts:
        run()
    return counts
