"""Whole weights inside a block: gather what FSDP2 or ZeRO-3 shards, keep it gathered, and shard it again.

Before it gathers, every process compares the bytes to gather with its free memory. They agree on the outcome, so that
where one of them would run out of memory all refuse, and none is left waiting. Under FSDP2 a caller may allow decoder
layers to be gathered one at a time instead (layer_gathering.py).

Inside a block of whole weights a forward or backward pass needs no communication, so processes may run different
numbers of passes, and one that fails does not leave the others waiting. Entering the block is a collective of all
processes; leaving it is not.

FSDP2 (torch 2.6 to 2.13) has public calls to gather and to shard one module. It has none to read whether a module is
sharded again after its forward, so two attributes of its parameter groups are set inside the block and restored after
it. ZeRO-3 gathers by `deepspeed.zero.GatheredParameters`; its module hooks, which would shard every parameter again
after its use, are replaced inside the block. All private names are in this file; tests/model/test_whole_weights.py
fails when a library changes them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from headwatch.errors import UnsupportedModelError
from headwatch.model.collectives import all_reduce, exchange_device
from headwatch.model.free_memory import free_memory
from headwatch.model.hooks import hooked, overridden
from headwatch.model.layer_gathering import LayerGathering, LayerUnit

LAYERS_AT_ONCE = 3  # in backward the next one is gathered before the last is sharded; FSDP2 may keep one more buffer


@dataclass
class _Block:
    """A block in progress: `trainable_bytes` before it, and whether anything in it ended by an exception.

    `layers`: gathers decoder layers one at a time; None where the weights are whole.
    """

    trainable_bytes: int
    failed: bool = False
    layers: LayerGathering | None = None


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
def whole_weights(
    model: nn.Module, optimizer: object | None = None, layers: Sequence[nn.Module] = ()
) -> Iterator[bool]:
    """Gather all parameters; shard them again when the block ends. Blocks nest; the inner ones do nothing.

    A model that is not sharded is left unchanged. Under FSDP2 the gathered parameters follow the mixed-precision policy
    of the training: they are what its forward pass computes with.

    Args:
        model: the model as the trainer holds it.
        optimizer: the trainer's optimizer; required only under ZeRO-3, where it holds the module hooks.
        layers: decoder layers that FSDP2 may gather one at a time where the whole weights do not fit. Every pass inside
            the block is then a collective: all processes must run the same ones.

    Yields:
        Whether the weights are whole inside the block; False if layers are gathered one at a time.

    Raises:
        UnsupportedModelError: the weights do not fit into the free memory of some process. All processes raise.
    """
    if model in _blocks:
        with _noting_failure(_blocks[model]):
            yield _blocks[model].layers is None
        return
    kind = sharding(model)
    if not kind:
        yield True
        return
    block, modules = _Block(trainable_bytes(model)), list(model.modules())
    units = _layer_units(model, layers) if kind == "FSDP2" else []
    if not _whole_weights_fit(model, kind, units):
        block.layers = LayerGathering(units, exchange_device())
    _blocks.update(dict.fromkeys(modules, block))
    try:
        with _gathered_fsdp2(model, block, units) if kind == "FSDP2" else _whole_zero3(model, optimizer):
            yield block.layers is None
    finally:
        for module in modules:
            _blocks.pop(module, None)


@contextmanager
def readable(module: nn.Module) -> Iterator[None]:
    """Let the block read the weights of a part of a decoder layer, where layers are gathered one at a time."""
    layers = _blocks[module].layers if module in _blocks else None
    with nullcontext() if layers is None else layers.reading(module):
        yield


def gathered_bytes(model: nn.Module) -> int:
    """Bytes that gathering allocates on this device: whole parameters, in the dtype of the forward pass."""
    if sharding(model) == "ZeRO-3":
        sharded: list[Any] = [p for p in model.parameters() if hasattr(p, "ds_numel") and p.numel() < p.ds_numel]
        return sum(parameter.ds_numel * parameter.element_size() for parameter in sharded)
    # accelerate shards the final norm, the output matrix and tied embeddings as one group of several modules
    groups = {id(group): group for module in _fsdp2_modules(model) for group in _fsdp2_groups(module)}
    return sum(map(_group_bytes, groups.values()))


def _group_bytes(group: Any) -> int:
    """Bytes that gathering a parameter group of FSDP2 allocates; 0 if it is gathered."""
    parameters = [each.sharded_param for each in group.fsdp_params if group.is_sharded]
    return sum(p.numel() * (group.mp_policy.param_dtype or p.dtype).itemsize for p in parameters)


def _whole_weights_fit(model: nn.Module, kind: str, units: list[LayerUnit]) -> bool:
    """Whether the whole weights fit on all processes; False if only LAYERS_AT_ONCE layers do. A collective.

    Raises:
        UnsupportedModelError: on every process, with the largest lack of all.
    """
    device = _compute_device(model)
    free, whole = free_memory(device), gathered_bytes(model)
    layers = [sum(map(_group_bytes, unit.groups)) for unit in units]
    needs = [whole, whole - sum(layers) + LAYERS_AT_ONCE * max(layers) if layers else whole]
    lacks = [0 if free is None else max(0, needed - free) for needed in needs]
    missing = torch.tensor(lacks, dtype=torch.int64, device=exchange_device())
    all_reduce(missing, "MAX")
    lack_whole, lack_layers = missing.tolist()
    if lack_whole and lack_layers:
        smaller = f" ({needs[1] / 2**30:.1f} GiB layer by layer)" if layers else ""
        raise UnsupportedModelError(
            f"model: sharded by {kind}, its whole weights take {whole / 2**30:.1f} GiB on each device during a probe"
            f"{smaller}, {min(lack_whole, lack_layers) / 2**30:.2g} GiB more than are free on at least one: use a "
            "smaller batch, bf16, or devices with more memory; or score its checkpoints after training (headwatch "
            "follow)"
        )
    return not lack_whole


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


def _layer_units(model: nn.Module, layers: Sequence[nn.Module]) -> list[LayerUnit]:
    """The modules that FSDP2 shards in each of these layers; none if it shards some layer only with others."""
    modules, units = _fsdp2_modules(model), []
    contained = {module: [layer for layer in layers if layer in set(module.modules())] for module in modules}
    for layer in layers:
        around = [module for module in modules if contained[module] == [layer]]  # itself, or a wrapper
        own = around + [module for module in modules if module is not layer and module in set(layer.modules())]
        if not own:
            return []
        outer = around[0] if around else layer
        groups = [group for module in own for group in _fsdp2_groups(module)]
        units.append(LayerUnit(outer, own, groups, [parameter.requires_grad for parameter in outer.parameters()]))
    return units


@contextmanager
def _gathered_fsdp2(model: nn.Module, block: _Block, units: list[LayerUnit]) -> Iterator[None]:
    modules = _fsdp2_modules(model)
    one_by_one = {module for unit in units for module in unit.modules} if block.layers is not None else set()
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
                if module in one_by_one:
                    _require(group, "unshard_in_backward")
                    stack.enter_context(overridden(group, unshard_in_backward=False))  # nor prefetches
        with _noting_failure(block):
            kept = [module for module in modules if module not in one_by_one]
            for module in kept:
                module.unshard()
            if block.layers is None and any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
                raise UnsupportedModelError(
                    "model: its layers are divided among processes (tensor or expert parallelism with FSDP2), "
                    "which is not supported: use FSDP2 alone"
                )
            with nullcontext() if block.layers is None else _one_at_a_time(block.layers):
                yield


@contextmanager
def _one_at_a_time(layers: LayerGathering) -> Iterator[None]:
    """Register the hooks that gather layers; at the end agree on whether the block failed anywhere."""
    try:
        with hooked(*layers.hooks()):
            yield
    except BaseException:
        layers.end(failed=True)
        raise
    layers.end(failed=False)


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
    _require(offload, *replaced, "get_param_coordinator")
    coordinator = offload.get_param_coordinator()
    _require(coordinator, "reset_step")  # called before each forward; a collective until the first training step
    inner.empty_partition_cache()  # what the last evaluation left gathered
    try:
        with (
            deepspeed.zero.GatheredParameters(list(model.parameters())),
            overridden(offload, **replaced),
            overridden(coordinator, reset_step=_no_step),
        ):
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


def _no_step() -> None:
    """Replace what ZeRO-3 does at the start of a training step."""


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
