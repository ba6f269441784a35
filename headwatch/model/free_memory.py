"""Free memory of the device that holds a model, per process."""

import os
from pathlib import Path

import torch


def free_cuda_bytes(device: torch.device) -> int | None:
    """Bytes of a CUDA device that torch can allocate without taking them from anyone; None for other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can allocate on its device; None where that is unknown.

    Processes of one machine that train on its CPU share its memory: each has an equal part of what is available.
    """
    if device.type != "cpu":
        return free_cuda_bytes(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    on_this_machine = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return None if available is None else int(available) * 1024 // on_this_machine
