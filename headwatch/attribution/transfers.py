"""Copies between host and device that do not make the host wait; one wait, at the end, for all results."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_PENDING_BYTES = 2**28  # results on their way to the host, before their arrival is awaited


def on_device(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Values of the host on the device; on CUDA from pinned memory, so that the host does not wait for the device."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Downloads:
    """Copies results to rows of arrays on the host; the arrays are complete after `finish`."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._bytes = 0

    def add(self, into: Tensor, rows: Tensor, values: Tensor, columns: slice = slice(None)) -> None:
        """Write values to into[rows, columns], in the dtype of `into`.

        Args:
            into: an array on the host.
            rows: indices on the host.
            values: on any device.
            columns: of the second dimension.
        """
        values = values.detach().to(into.dtype)
        target = into if columns == slice(None) else into[:, columns]
        if values.device.type not in ("cuda", "meta"):
            target[rows] = values.cpu()
            return
        if values.device.type == "cuda":
            self._streams[values.device] = torch.cuda.current_stream(values.device)
        self._pending.append((target, rows, values.to("cpu", non_blocking=True)))  # on CUDA into pinned memory
        self._bytes += values.nbytes
        if self._bytes > MAX_PENDING_BYTES:
            self.finish()

    def finish(self) -> None:
        """Wait for the copies, and write them to their rows."""
        for stream in self._streams.values():
            stream.synchronize()
        for into, rows, values in self._pending:
            into[rows] = values
        self._pending, self._bytes = [], 0


def wait_for(device: torch.device) -> None:
    """Wait until the device has done everything that was queued on it; at once except on CUDA."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
