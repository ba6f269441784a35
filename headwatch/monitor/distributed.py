"""Several training processes: what all of them must agree on, and how they share the work of a probe.

One process needs none of this, and every function here then does nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.errors import UserError

FINE, FAILED, REFUSED = 0, 1, 2  # what a process has to say of an attempt: higher wins


def world() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    d = torch.distributed
    return (d.get_rank(), d.get_world_size()) if d.is_available() and d.is_initialized() else (0, 1)


def agree(outcome: int) -> int:
    """The worst outcome of all processes, known to all of them."""
    if world()[1] == 1:
        return outcome
    worst = torch.tensor([outcome], device=_device())
    torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
    return int(worst)


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass of this model is a collective of all processes (FSDP2, ZeRO-3).

    There every process must run the same passes, and one that fails alone leaves the others waiting.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return True
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # a torch built without distributed
        return False
    return any(isinstance(module, FSDPModule) for module in model.modules())


def from_main(value: Any) -> Any:
    """What the main process has, on every process; pickled, so not for large things every probe."""
    if world()[1] == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def on_main(action: Callable[[], Any]) -> Any:
    """What `action` returns on the main process, on every process; every process must come here.

    Where it raises, it raises there, and an error of the same kind (the user's mistake or not) everywhere else.
    """
    error: Exception | None = None
    outcome: tuple[int, Any] = (FINE, None)
    if world()[0] == 0:
        try:
            outcome = (FINE, action())
        except Exception as caught:
            error = caught
            outcome = (REFUSED if isinstance(caught, UserError) else FAILED, None)
    kind, value = from_main(outcome)
    if error is not None:
        raise error
    if kind != FINE:
        other = "the main process could not go on: its message says why"
        raise UserError(other) if kind == REFUSED else RuntimeError(other)
    return value


def _reduced(values: Tensor, how: str) -> Tensor:
    if world()[1] == 1:
        return values
    moved = values.to(_device())
    torch.distributed.all_reduce(moved, op=getattr(torch.distributed.ReduceOp, how))
    return moved.cpu()


def _device() -> torch.device:
    """Where the processes' backend can add up a tensor."""
    on_gpu = "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
