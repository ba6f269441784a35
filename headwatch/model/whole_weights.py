"""Whole weights inside a block: gather what FSDP2 or ZeRO-3 shards, keep it gathered, and shard it again.

Before it gathers, every process compares the bytes to gather with its free memory. They agree on the outcome, so that
where one of them would run out of memory all refuse, and none is left waiting.

Inside the block a forward or backward pass needs no communication, so processes may run different numbers of passes,
and one that fails does not leave the others waiting. Entering the block is a collective of all processes; leaving it is
not.

FSDP2 (torch 2.6 to 2.13) has public calls to gather and to shard one module. It has none to read whether a module is
sharded again after its forward, so two attributes of its parameter groups are set inside the block and restored after
it. ZeRO-3 gathers by `deepspeed.zero.GatheredParameters`; its module hooks, which would shard every parameter again
after its use, are replaced inside the block. All private names are in this file; tests/model/test_whole_weights.py
fails when a library changes them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from headwatch.errors import UnsupportedModelError
from headwatch.model.free_memory import free_memory
from headwatch.model.hooks import overridden


@dataclass
class _Block:
    """A block in progress: `trainable_bytes` before it, and whether anything in it ended by an exception."""

    trainable_bytes: int
    failed: bool = False


_blocks: "WeakKeyDictionary[nn.Module, _Block]" = WeakKeyDictionary()  # by every module of the model


def sharding(model: nn.Module) -> str:
    """How the model's parameters are divided among processes: "FSDP2", "ZeRO-3" or "" (they are not)."""
    if _fsdp2_modules(model):
        return "FSDP2"
    return "ZeRO-3" if any(hasattr(parameter, "ds_id") for parameter in model.parameters()) else ""


def trainable_bytes(model: nn.Module) -> int:
    """Bytes of the trainable parameters that this device holds: of sharded ones, its shard."""
    if model in _blocks:
        return _blocks[model].trainable_bytes
    own = [_own_part(parameter) for parameter in model.parameters() if parameter.requires_grad]
    return sum(part.numel() * part.element_size() for part in own)


def _own_part(parameter: Any) -> Any:
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3
        return parameter.ds_tensor
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


@contextmanager
def whole_weights(model: nn.Module, optimizer: object | None = None) -> Iterator[None]:
    """Gather all parameters; shard them again when the block ends. Blocks nest; the inner ones do nothing.

    A model that is not sharded is left unchanged. Under FSDP2 the gathered parameters follow the mixed-precision policy
    of the training: they are what its forward pass computes with.

    Args:
        model: the model as the trainer holds it.
        optimizer: the trainer's optimizer; required only under ZeRO-3, where it holds the module hooks.

    Raises:
        UnsupportedModelError: the whole weights do not fit into the free memory of some process. All processes raise.
    """
    if model in _blocks:
        with _noting_failure(_blocks[model]):
            yield
        return
    kind = sharding(model)
    if not kind:
        yield
        return
    _require_memory(model, kind)
    block, modules = _Block(trainable_bytes(model)), list(model.modules())
    _blocks.update(dict.fromkeys(modules, block))
    try:
        with _whole_fsdp2(model, block) if kind == "FSDP2" else _whole_zero3(model, optimizer):
            yield
    finally:
        for module in modules:
            _blocks.pop(module, None)


def gathered_bytes(model: nn.Module) -> int:
    """Bytes that gathering allocates on this device: whole parameters, in the dtype of the forward pass."""
    if sharding(model) == "ZeRO-3":
        sharded: list[Any] = [p for p in model.parameters() if hasattr(p, "ds_numel") and p.numel() < p.ds_numel]
        return sum(parameter.ds_numel * parameter.element_size() for parameter in sharded)
    total = 0
    for module in _fsdp2_modules(model):
        for group in _fsdp2_groups(module):
            for parameter in (each.sharded_param for each in group.fsdp_params if group.is_sharded):
                total += parameter.numel() * (group.mp_policy.param_dtype or parameter.dtype).itemsize
    return total


def _require_memory(model: nn.Module, kind: str) -> None:
    """Refuse on all processes if the whole weights do not fit on one of them; a collective.

    Raises:
        UnsupportedModelError: on every process, with the largest lack of all.
    """
    device = _compute_device(model)
    free, needed = free_memory(device), gathered_bytes(model)
    missing = torch.tensor([0 if free is None else max(0, needed - free)], dtype=torch.int64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(missing, op=torch.distributed.ReduceOp.MAX)
    if lack := int(missing):
        raise UnsupportedModelError(
            f"model: sharded by {kind}, its whole weights take {needed / 2**30:.1f} GiB on each device during a probe, "
            f"{lack / 2**30:.2g} GiB more than are free on at least one: use a smaller batch, bf16, or devices with "
            "more memory; or score its checkpoints after training (headwatch follow)"
        )


def _compute_device(model: nn.Module) -> torch.device:
    """Where the gathered weights will be; of offloaded ones not where the shards are."""
    gpu = torch.cuda.is_available() and "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if gpu else next(model.parameters()).device


@contextmanager
def _noting_failure(block: _Block) -> Iterator[None]:
    try:
        yield
    except BaseException:
        block.failed = True
        raise


@contextmanager
def _whole_fsdp2(model: nn.Module, block: _Block) -> Iterator[None]:
    modules = _fsdp2_modules(model)
    for module in modules:  # parents first
        state = _fsdp2_state(module)
        if state._is_root is None:  # before the first forward, which decides whether the root is sharded after forward
            state._lazy_init()
    with ExitStack() as stack:
        stack.callback(lambda: _reshard_fsdp2(modules, block.failed))
        for module in modules:
            for group in _fsdp2_groups(module):
                _require(group, "post_forward_mesh_info", "reshard_after_backward")
                stack.enter_context(overridden(group, post_forward_mesh_info=None, reshard_after_backward=False))
        with _noting_failure(block):
            for module in modules:
                module.unshard()
            if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
                raise UnsupportedModelError(
                    "model: its layers are divided among processes (tensor or expert parallelism with FSDP2), "
                    "which is not supported: use FSDP2 alone"
                )
            yield


def _reshard_fsdp2(modules: list[Any], failed: bool) -> None:
    """Shard the parameters; after an exception also reset FSDP2's state, which is still FORWARD or BACKWARD.

    After a forward without a backward the root's parameters stay gathered, and the next forward after an optimizer step
    would read the old weights.
    """
    for module in modules:
        if failed and _fsdp2_state(module)._is_root:
            if hasattr(module, "reset_iter_state"):  # torch 2.13
                module.reset_iter_state()
            else:  # what FSDP2 runs at the end of every backward
                _fsdp2_state(module)._root_post_backward_final_callback()
    for module in modules:
        module.reshard()


@contextmanager
def _whole_zero3(model: nn.Module, optimizer: object | None) -> Iterator[None]:
    import deepspeed
    from deepspeed.runtime.zero import parameter_offload

    inner: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps DeepSpeed's optimizer
    offload = getattr(inner, "parameter_offload", None)
    if offload is None:
        raise RuntimeError(
            "a model under ZeRO-3 can only be read with its trainer's DeepSpeed optimizer; pass optimizer="
        )
    running: list[nn.Module] = parameter_offload.FWD_MODULE_STACK
    depth = len(running)
    replaced: dict[str, Callable[[nn.Module], None]] = {
        "pre_sub_module_forward_function": running.append,  # DeepSpeed's own hook removes it again
        "post_sub_module_forward_function": _nothing,
        "pre_sub_module_backward_function": _nothing,
        "post_sub_module_backward_function": _nothing,
    }
    _require(offload, *replaced)
    inner.empty_partition_cache()  # what the last evaluation left gathered
    try:
        with deepspeed.zero.GatheredParameters(list(model.parameters())), overridden(offload, **replaced):
            yield
    finally:
        del running[depth:]
        inner.empty_partition_cache()


def _require(owner: object, *names: str) -> None:
    """Refuse a version of torch or DeepSpeed without these names; setting them would leave the weights divided."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise RuntimeError(
            f"{type(owner).__module__} has no {', '.join(missing)}: headwatch does not support how this "
            f"version shards weights (torch {torch.__version__}); please report it"
        )


def _nothing(module: nn.Module) -> None:
    """Replace a hook of ZeRO-3."""


def _fsdp2_modules(model: nn.Module) -> list[Any]:
    """The modules that FSDP2 shards, parents first."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # a torch built without distributed
        return []
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _fsdp2_state(module: Any) -> Any:
    return module._get_fsdp_state()


def _fsdp2_groups(module: Any) -> list[Any]:
    state = _fsdp2_state(module)
    if hasattr(state, "_fsdp_param_groups"):  # torch 2.13
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]
