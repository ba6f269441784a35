"""What must not change while a CUDA graph of a model is used: addresses of weights, plain attributes of modules."""

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from headwatch.model.whole_weights import sharding

_LIBRARIES = {"torch", "transformers", "peft", "accelerate"}  # their hooks do the same at every call
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OF_MODULES = {"_parameters", "_buffers", "_modules", "training"}  # and whatever torch keeps of hooks


def no_graphs_because(model: nn.Module) -> str | None:
    """Why passes over this model cannot be CUDA graphs, one line; None if they can."""
    devices = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    kinds = {device.partition(":")[0] for device in devices}
    if kinds != {"cuda"}:
        return f"the model is on {' and '.join(sorted(kinds))}"
    if len({str(parameter.device) for parameter in model.parameters()}) > 1:
        return "the model is on several devices"
    if sharding(model):
        return f"{sharding(model)} moves the weights"
    return own_python(model)


def own_python(model: nn.Module) -> str | None:
    """The first module that runs a hook of the user's, or whose weights accelerate moves; a graph would do neither."""
    for name, module in model.named_modules():
        if hasattr(module, "_hf_hook"):
            return f"accelerate moves the weights of {name or 'the model'}"
        for hooks in _HOOKS:
            for hook in vars(module)[hooks].values():
                hook = getattr(hook, "func", hook)
                if str(getattr(hook, "__module__", "")).partition(".")[0] not in _LIBRARIES:
                    return f"{name or 'the model'} has a hook of its own"
    return None


def graph_state(model: nn.Module) -> Hashable:
    """Changes whenever a graph of the model would repeat something else than the model does.

    Addresses, shapes and dtypes of parameters and buffers, and plain attributes of modules and configurations: the
    active adapter, its scale, the attention function.
    """
    tensors = tuple((name, *_place(own)) for name, own in (*model.named_parameters(), *model.named_buffers()))
    configs = {id(own): own for module in model.modules() if (own := getattr(module, "config", None)) is not None}
    modules = tuple((name, _attributes(module)) for name, module in model.named_modules())
    return tensors, modules, tuple(_attributes(own) for own in configs.values())


def _place(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, id(getattr(tensor, "quant_state", None))


def _attributes(owner: Any) -> Hashable:
    own = vars(owner) if hasattr(owner, "__dict__") else {}
    return tuple((name, _plain(value)) for name, value in sorted(own.items()) if not _of_torch(name))


def _of_torch(name: str) -> bool:
    return name in _OF_MODULES or name.endswith("_hooks") or "_hooks_" in name


def _plain(value: Any) -> Hashable:
    """A value as something that can be compared; other objects by identity."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return "tensor", *_place(value)
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return tuple((str(key), _plain(own)) for key, own in value.items())
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(str, value)))
    return type(value).__name__, id(value)
