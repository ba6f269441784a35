"""Peak memory of a block, above what was in use before it."""

import re
from pathlib import Path

import torch


class PeakMemory:
    """The most memory in use inside the block, above what was in use before.

    On CUDA what torch allocated; on Linux without it what was resident; elsewhere nothing is known.

    Attributes:
        mib: in MiB, after the block; None where it is not known.
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
    """Let the kernel forget the process's highest resident set (proc(5): clear_refs 5)."""
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
