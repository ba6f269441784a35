"""Peak memory of a block of code."""

import re
from pathlib import Path

import torch


class PeakMemory:
    """Peak memory inside the block, above the memory in use before it.

    On CUDA memory allocated by torch; on Linux without CUDA resident memory; elsewhere unknown.

    Attributes:
        mib: in MiB, after the block; None if unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.mib: float | None = None

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: float | None = torch.cuda.memory_allocated(self._device)
        else:
            self._before = _resident("VmRSS") if _reset_peak() else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            highest: float | None = torch.cuda.max_memory_allocated(self._device)
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
