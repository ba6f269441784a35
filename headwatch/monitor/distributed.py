"""Agreement between training processes: status, broadcast from the main process, reductions.

With one process every function here returns at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwatch.errors import UserError

OK, ERROR, USER_ERROR = 0, 1, 2  # status of one process, reduced by max


def world() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    d = torch.distributed
    return (d.get_rank(), d.get_world_size()) if d.is_available() and d.is_initialized() else (0, 1)


def agree(outcome: int) -> int:
    """The highest status of all processes, the same on each."""
    if world()[1] == 1:
        return outcome
    worst = torch.tensor([outcome], device=_device())
    with _naming_lost_process():
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        return int(worst)


def from_main(value: Any) -> Any:
    """Broadcast a value of the main process; it is pickled, so keep it small."""
    if world()[1] == 1:
        return value
    box = [value]
    with _naming_lost_process():
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def on_main(action: Callable[[], Any]) -> Any:
    """Run `action` on the main process and broadcast its result; every process must call this.

    Raises:
        Exception: on the main process, what `action` raised; on the others UserError or RuntimeError accordingly.
    """
    error: Exception | None = None
    outcome: tuple[int, Any] = (OK, None)
    if world()[0] == 0:
        try:
            outcome = (OK, action())
        except Exception as caught:
            error = caught
            outcome = (USER_ERROR if isinstance(caught, UserError) else ERROR, None)
    kind, value = from_main(outcome)
    if error is not None:
        raise error
    if kind != OK:
        other = "the main process failed: see its message"
        raise UserError(other) if kind == USER_ERROR else RuntimeError(other)
    return value


def reduce_over_ranks(values: Tensor, how: str) -> Tensor:
    """All-reduce a tensor; `how` is "SUM", "MAX" or "MIN". On the CPU."""
    if world()[1] == 1:
        return values
    moved = values.to(_device())
    with _naming_lost_process():
        torch.distributed.all_reduce(moved, op=getattr(torch.distributed.ReduceOp, how))
        return moved.cpu()


def gather_on_main(values: Tensor) -> list[Tensor] | None:
    """The tensors of all processes, of one shape, on the CPU of the main process; None on the others."""
    rank, size = world()
    if size == 1:
        return [values]
    own = values.to(_device())
    parts = [torch.empty_like(own) for _ in range(size)] if rank == 0 else None
    with _naming_lost_process():
        torch.distributed.gather(own, parts, dst=0)
    return None if parts is None else [part.cpu() for part in parts]


class LostProcessError(RuntimeError):
    """Another process has ended or no longer answers, so this training cannot go on."""


@contextmanager
def _naming_lost_process() -> Iterator[None]:
    """Name the cause when a collective fails; the training's own next collective would fail without saying why."""
    try:
        yield
    except RuntimeError as error:
        rank, size = world()
        raise LostProcessError(
            f"headwatch: process {rank} of {size} waited for the others, and one has ended or no longer answers "
            f"({' '.join(str(error).split())[:200]}); see the log of that process"
        ) from error


def _device() -> torch.device:
    """The device on which the process group reduces tensors."""
    on_gpu = "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
