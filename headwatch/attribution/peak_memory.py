"""Peak memory of a block of code."""

import re
from pathlib import Path

import torch


class PeakMemory:
    """Peak memory inside the block, above the memory in use before it.

    On CUDA memory allocated by torch; on Linux without CUDA resident memory; elsewhere unknown. torch's peak statistics
    on CUDA are the user's own: they are read, not reset. Where the block stays below an earlier peak of the process,
    the largest value that `sample` has seen is reported.

    Attributes:
        mib: in MiB, after the block; None if unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sampled = 0.0
        self.mib: float | None = None

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            self._before: float | None = torch.cuda.memory_allocated(self._device)
            self._earlier = torch.cuda.max_memory_allocated(self._device)
        else:
            self._before = _resident("VmRSS") if _reset_peak() else None
        return self

    def sample(self) -> None:
        """Note the memory in use; call it where much is alive, such as between a forward and its backward pass."""
        if self._device.type == "cuda":
            self._sampled = max(self._sampled, torch.cuda.memory_allocated(self._device))

    def __exit__(self, *exception: object) -> None:
        if self._device.type == "cuda":
            highest: float | None = torch.cuda.max_memory_allocated(self._device)
            highest = highest if highest != self._earlier else self._sampled
        else:
            highest = _resident("VmHWM")
        if self._before is not None and highest is not None:
            self.mib = max(0.0, highest - self._before) / 2**20


def _reset_peak() -> bool:
    """Reset the kernel's record of the peak resident set (proc(5): clear_refs 5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> float | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024.0 * int(found[1]) if found else None
