"""Gather the weights of one decoder layer at a time, where those of a whole FSDP2 model do not fit on a device.

Inside such a block each forward and backward pass is a collective: every process must run the same passes, on the same
pairs. Before each layer is gathered the processes agree that none has failed and that all need the same layer. A
process whose pass fails reports it in the place of its next agreement, so the others raise instead of waiting for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headwatch.model.collectives import all_reduce
from headwatch.model.hooks import overridden

_END = -1  # the place in which a block ends


class OtherProcessError(RuntimeError):
    """A pass failed on another process, or the processes ran different passes; all of them raise."""


@dataclass
class LayerUnit:
    """The FSDP2 modules of one decoder layer.

    Attributes:
        outer: the decoder layer, or the module around it that FSDP2 shards (a checkpoint wrapper).
        modules: the modules that FSDP2 shards, `outer` or parts of it.
        groups: their parameter groups.
        trained: whether each parameter of `outer` requires a gradient in training.
        whole: whether the layer is gathered.
    """

    outer: nn.Module
    modules: list[Any]
    groups: list[Any]
    trained: list[bool]
    whole: bool = False


class LayerGathering:
    """Gathers each layer for its forward pass, for its backward pass, and where its weights are read.

    Args:
        units: the layers.
        device: where processes exchange numbers.
    """

    def __init__(self, units: Sequence[LayerUnit], device: torch.device) -> None:
        self._units, self._device = units, device
        self._unit_of = {module: n for n, unit in enumerate(units) for module in unit.outer.modules()}
        self._failed = False  # known to all processes

    def hooks(self) -> list[RemovableHandle]:
        """Register the hooks that gather and shard."""
        handles = []
        for number, unit in enumerate(self._units):
            # Before FSDP2's own hook, which then finds the layer gathered.
            before = unit.outer.register_forward_pre_hook(self._before(number), with_kwargs=True, prepend=True)
            handles += [before, unit.outer.register_forward_hook(self._after(number))]
        return handles

    @contextmanager
    def reading(self, module: nn.Module) -> Iterator[None]:
        """Gather the layer that contains `module` inside the block, if it is not gathered already."""
        number = self._unit_of.get(module)
        if number is None or self._units[number].whole:
            yield
            return
        self._gather(number)
        try:
            yield
        finally:
            self._shard(number)

    def end(self, failed: bool) -> None:
        """Agree that no process has failed; every process must call this once, at the end of the block.

        Raises:
            OtherProcessError: another process has failed, and this one has not.
        """
        for number in range(len(self._units)):
            self._shard(number)
        if not self._failed:
            self._agree(_END, failed)

    def _before(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._gather(number)
            states = _first_tensor(args, kwargs.get("hidden_states"))
            if states is not None and states.requires_grad and torch.is_grad_enabled():
                states.register_hook(lambda grad: self._shard(number))

        return hook

    def _after(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._shard(number)
            states = _first_tensor((output,))
            if states is not None and states.requires_grad:
                states.register_hook(lambda grad: self._gather(number))

        return hook

    def _gather(self, number: int) -> None:
        self._agree(number)
        unit = self._units[number]
        if unit.whole:
            return
        with ExitStack() as stack:
            for group in unit.groups:
                stack.enter_context(overridden(group, unshard_in_backward=True))
            for module in unit.modules:
                module.unshard()
        unit.whole = True
        for parameter in unit.outer.parameters():
            parameter.requires_grad_(False)

    def _shard(self, number: int) -> None:
        unit = self._units[number]
        if not unit.whole:
            return
        unit.whole = False
        for parameter, trained in zip(unit.outer.parameters(), unit.trained, strict=True):
            parameter.requires_grad_(trained)  # FSDP2 keeps the gathered parameters' flags for the next training step
        for module in unit.modules:
            module.reshard()

    def _agree(self, place: int, failed: bool = False) -> None:
        """Raise on all processes if one has failed, or if they are not in the same place; a collective."""
        numbers = torch.tensor([int(failed), place, -place], device=self._device)
        all_reduce(numbers, "MAX")
        worst, last, first = numbers.tolist()
        self._failed = bool(worst) or last != -first
        if self._failed and not failed:
            what = "the pass failed on another process" if worst else "the processes ran different passes"
            raise OtherProcessError(f"{what}: see its message")


def _first_tensor(values: Sequence[Any], default: Any = None) -> Tensor | None:
    """The first tensor among a module's inputs or outputs."""
    for value in (*values, default):
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, Tensor):
            return value
    return None
