"""Collectives of headwatch's own; where one fails or takes too long, the process that is missing is named.

Before each collective a process notes in the store of the process group (which torchrun keeps alive) how many it has
begun. When one fails, the processes that have not begun it are the ones that it waited for.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LIMIT = 1790.0  # seconds; below the 1,800 after which transformers' ddp_timeout ends a process without a word (NCCL)


class LostProcessError(RuntimeError):
    """Another process has ended or no longer answers, so this training cannot go on."""


class _Progress:
    """Number of collectives that this process has begun in this process group, and the error that ended them."""

    group = 0
    begun = 0
    limit = LIMIT
    lost: LostProcessError | None = None


def set_limit(seconds: float) -> None:
    """Set how long a collective may wait for other processes: the ddp_timeout of the training, or a little less."""
    _Progress.limit = min(seconds, max(seconds - 10.0, 0.9 * seconds))


def world() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    d = torch.distributed
    return (d.get_rank(), d.get_world_size()) if d.is_available() and d.is_initialized() else (0, 1)


def exchange_device() -> torch.device:
    """The device on which the process group exchanges tensors."""
    on_gpu = world()[1] > 1 and "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def all_reduce(values: Tensor, how: str) -> None:
    """Reduce a tensor of `exchange_device` over all processes, in place; `how` is "SUM", "MAX" or "MIN"."""
    op = getattr(torch.distributed.ReduceOp, how)
    _wait_for(lambda: torch.distributed.all_reduce(values, op=op, async_op=True))


def broadcast_from_main(values: Tensor) -> None:
    """Overwrite a tensor of `exchange_device` by the main process's."""
    _wait_for(lambda: torch.distributed.broadcast(values, src=0, async_op=True))


def gather_on_main(values: Tensor, parts: list[Tensor] | None) -> None:
    """Copy the tensors of all processes into `parts` on the main process; None on the others."""
    _wait_for(lambda: torch.distributed.gather(values, parts, dst=0, async_op=True))


def _wait_for(begin: Callable[[], Any]) -> None:
    """Run one collective.

    Raises:
        LostProcessError: it failed or took too long. The first time one line is logged.
    """
    if world()[1] == 1:
        return
    if _Progress.group != id(torch.distributed.group.WORLD):
        _Progress.group, _Progress.begun, _Progress.lost = id(torch.distributed.group.WORLD), 0, None
    if _Progress.lost is not None:
        raise _Progress.lost
    _Progress.begun += 1
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        store.set(_key(world()[0]), str(_Progress.begun))
        begin().wait(timedelta(seconds=_Progress.limit))
    except RuntimeError as error:
        line = _describe(error)
        _Progress.lost = LostProcessError(line)
        logger.error("headwatch: %s", line)
        raise _Progress.lost from error


def _describe(error: RuntimeError) -> str:
    """One line: who is missing in the present collective."""
    rank, size = world()
    missing = [other for other in range(size) if other != rank and _has_not_begun(other)]
    reason = " ".join(str(error).split())[:160]
    if not missing:
        return f"another process has ended, seen by rank {rank}; the job ends ({reason})"
    ranks = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    if "timed out" in reason.lower():
        return f"{ranks} did not answer within {_Progress.limit:.0f} s; the job ends"
    return f"{ranks} ended before the others were done; the job ends (seen by rank {rank}: {reason})"


def _has_not_begun(rank: int) -> bool:
    """Whether another process has begun fewer collectives than this one; False where that is unknown."""
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return not store.check([_key(rank)]) or int(store.get(_key(rank))) < _Progress.begun
    except RuntimeError:  # the store has ended as well
        return False


def _key(rank: int) -> str:
    return f"headwatch/collectives/{rank}"
