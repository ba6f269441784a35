"""Agreement between training processes: status, broadcast from the main process, reductions.

With one process every function here returns at once.
"""

import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headwatch.errors import UserError
from headwatch.model.collectives import all_reduce, broadcast_from_main, exchange_device, world
from headwatch.model.collectives import gather_on_main as gather_into

OK, ERROR, USER_ERROR = 0, 1, 2  # status of one process, reduced by max


def agree(outcome: int) -> int:
    """The highest status of all processes, the same on each."""
    if world()[1] == 1:
        return outcome
    worst = torch.tensor([outcome], device=exchange_device())
    all_reduce(worst, "MAX")
    return int(worst)


def from_main(value: Any) -> Any:
    """Broadcast a value of the main process; it is pickled, so keep it small."""
    if world()[1] == 1:
        return value
    device, first = exchange_device(), world()[0] == 0
    pickled = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8) if first else torch.empty(0)
    length = torch.tensor([len(pickled)], device=device)
    broadcast_from_main(length)
    box = pickled.to(device) if first else torch.empty(int(length), dtype=torch.uint8, device=device)
    broadcast_from_main(box)
    return value if first else pickle.loads(box.cpu().numpy().tobytes())


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
    moved = values.to(exchange_device(), copy=True)
    all_reduce(moved, how)
    return moved.cpu()


def gather_on_main(values: Tensor) -> list[Tensor] | None:
    """The tensors of all processes, of one shape, on the device of `values` of the main process; None on the others."""
    rank, size = world()
    if size == 1:
        return [values]
    own = values.to(exchange_device())
    parts = [torch.empty_like(own) for _ in range(size)] if rank == 0 else None
    gather_into(own, parts)
    return None if parts is None else [part.to(values.device) for part in parts]
