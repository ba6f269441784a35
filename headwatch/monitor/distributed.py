"""Agreement between training processes: status, broadcast from the main process, reductions.

With one process every function here returns at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
    """Broadcast a value of the main process; it is pickled, so keep it small."""
    if world()[1] == 1:
        return value
    box = [value]
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
    torch.distributed.all_reduce(moved, op=getattr(torch.distributed.ReduceOp, how))
    return moved.cpu()


def _device() -> torch.device:
    """The device on which the process group reduces tensors."""
    on_gpu = "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
