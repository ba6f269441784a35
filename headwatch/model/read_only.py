"""A pass over a model in training that leaves no trace: same weights, same modes, same random numbers afterwards."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_TRACE = "headwatch: the read-only pass left a trace: "
_ABSENT = object()

Undo = Callable[[], object]


class ReadOnlyError(RuntimeError):
    """The pass changed the model in a way that it must not, or one of its changes could not be undone."""


class _Removable(Protocol):
    def remove(self) -> object: ...


Handle = TypeVar("Handle", bound=_Removable)


class PassScope:
    """Where the body of `read_only_pass` registers what must be undone when the pass ends, however it ends.

    Undone in reverse order; one step that fails does not keep the others from running.
    """

    def __init__(self) -> None:
        self._undo: list[Undo] = []

    def on_exit(self, undo: Undo) -> None:
        """Call `undo()` when the pass ends."""
        self._undo.append(undo)

    def keep(self, handle: Handle) -> Handle:
        """Remove a hook's handle when the pass ends; returns it."""
        self.on_exit(handle.remove)
        return handle

    def override(self, owner: Any, name: str, value: object) -> None:
        """Set an attribute until the pass ends; one that `owner` itself did not have before is deleted again."""
        before = vars(owner).get(name, _ABSENT)
        self.on_exit(lambda: delattr(owner, name) if before is _ABSENT else setattr(owner, name, before))
        setattr(owner, name, value)

    def _run(self) -> list[str]:
        """Undo everything, newest first; what failed, one line each."""
        failures = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:  # the remaining steps still have to run
                failures.append(f"{type(error).__name__}: {error}")
        return failures


@contextmanager
def read_only_pass(model: nn.Module, optimizer: object | None = None) -> Iterator[PassScope]:
    """Run the body on `model` in eval mode, with gradients enabled and no parameter asking for one; then undo it all.

    Saved and put back, whether the body returns or raises: the random states (Python, numpy, torch on the CPU, the
    current CUDA device and MPS), `.training` of every module, `.requires_grad` of every parameter, the state of
    length-dependent rotary embeddings, the sharding of FSDP2 and ZeRO-3 parameters, and whatever the body registers
    with the `PassScope` that it is given. Passes nest.

    Args:
        model: the model as the trainer holds it: bare, PeftModel, FSDP2 or ZeRO-3 sharded (never the DDP wrapper).
        optimizer: the trainer's optimizer; needed under ZeRO-3 only, where it holds the parameter partitions.

    Yields:
        The scope with which the body registers hooks (`keep`), overridden attributes and other undo steps.

    Raises:
        ReadOnlyError: a parameter's `.grad` or value changed inside (a `.grad` that was replaced is put back first),
            or a step of the undoing failed. When the body itself raised, its exception is passed on as it is, and
            what could not be undone is added to it as a note: see `left_trace`.
    """
    own = PassScope()
    scope = PassScope()
    check_parameters = _parameter_check(model)
    own.on_exit(_random_state())
    own.on_exit(_flags(model))
    own.on_exit(_rotary_state(model))
    own.on_exit(_four_bit_state(model))
    body_failed: BaseException | None = None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            model.eval()  # no dropout, no activation checkpointing
            for parameter in model.parameters():
                parameter.requires_grad_(False)  # activation gradients only: saves a third of the arithmetic
            yield scope
    except BaseException as error:
        body_failed = error
        raise
    finally:
        problems = scope._run()
        # Sharding first: the flags and gradients checked below belong to the parameters as the model held them before.
        resharding = PassScope()
        resharding.on_exit(lambda: _release_zero3(optimizer))
        resharding.on_exit(lambda: _reshard_fsdp2(model, failed=body_failed is not None))
        problems += resharding._run() + own._run() + check_parameters()
        if problems:
            message = _TRACE + "; ".join(problems)
            if body_failed is None:
                raise ReadOnlyError(message)
            body_failed.add_note(message)
            logger.error(message)


def left_trace(error: BaseException) -> bool:
    """Whether an exception that came out of `read_only_pass` says that the model is not as it was before."""
    return isinstance(error, ReadOnlyError) or any(note.startswith(_TRACE) for note in getattr(error, "__notes__", ()))


def _random_state() -> Undo:
    """Save every random state that a forward pass can draw from. Only the current CUDA device has one in use."""
    python, legacy_numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


def _flags(model: nn.Module) -> Undo:
    """Save .training of every module and .requires_grad of every parameter, one by one: neither need be uniform."""
    training = [(module, module.training) for module in model.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for module, mode in training:
            module.training = mode
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)

    return restore


def _rotary_state(model: nn.Module) -> Undo:
    """Save the frequencies of rotary embeddings that depend on the longest sequence seen so far.

    `rope_type="dynamic"` and `"longrope"` replace or overwrite their `inv_freq` buffer in forward
    (transformers.modeling_rope_utils.dynamic_rope_update), so a pass with short prompts would change the next step.
    """
    saved = []
    for module in model.modules():
        if hasattr(module, "rope_type"):
            buffers = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers(recurse=False)}
            plain = {name: value for name, value in vars(module).items() if isinstance(value, int | float | Tensor)}
            saved.append((module, plain, buffers))

    def restore() -> None:
        for module, plain, buffers in saved:
            vars(module).update(plain)
            for name, (buffer, content) in buffers.items():
                buffer.copy_(content)  # in place: the buffer keeps its address, which CUDA graphs replay from
                module._buffers[name] = buffer

    return restore


def _four_bit_state(model: nn.Module) -> Undo:
    """Keep bitsandbytes' 4-bit layers from rewriting themselves in forward, and save what forward sets for good.

    On CPUs with avx512_bf16 an evaluation forward of `Linear4bit` repacks its weight for inference, after which no
    gradient passes the layer; and the first forward of any mode fixes the dtype that the layer computes in, and casts
    its bias to it.
    """
    names = ("support_avx512bf16_for_cpu", "compute_dtype", "compute_type_is_set")
    layers = [module for module in model.modules() if hasattr(module, names[0])]
    saved = [(layer, {name: getattr(layer, name) for name in names if hasattr(layer, name)}) for layer in layers]
    for layer in layers:
        setattr(layer, names[0], False)

    biases = [(layer.bias, layer.bias.data) for layer in layers if isinstance(layer.bias, Tensor)]

    def restore() -> None:
        for layer, values in saved:
            for name, value in values.items():
                setattr(layer, name, value)
        for bias, data in biases:
            bias.data = data

    return restore


def _parameter_check(model: nn.Module) -> Callable[[], list[str]]:
    """Remember what a forward pass reads of every parameter, and its gradient; the check names what changed."""
    before = [
        (name, parameter, _content(parameter), parameter.grad, _content(parameter.grad))
        for name, parameter in model.named_parameters()
    ]

    def check() -> list[str]:
        problems = []
        for name, parameter, content, grad, grad_content in before:
            if parameter.grad is not grad:
                parameter.grad = grad
                problems.append(f"{name}.grad was set inside (put back now; use torch.autograd.grad, not .backward())")
            elif not _same(_content(grad), grad_content):
                problems.append(f"{name}.grad was changed in place inside")
            if not _same(_content(parameter), content):
                problems.append(f"{name} was changed in place inside")
        return problems if len(problems) <= 3 else [*problems[:3], f"and {len(problems) - 3} more like it"]

    return check


def _content(tensor: Tensor | None) -> tuple[object, ...]:
    """What decides a tensor's values, without reading them: where they lie, in which shape and type, how often they
    were written in place, and how they are to be unpacked (bitsandbytes).

    Sharded parameters (DTensor, ZeRO-3) are rewritten by their gathering: nothing is compared.
    """
    if tensor is None or hasattr(tensor, "ds_id") or hasattr(tensor, "device_mesh"):
        return ()
    try:
        storage = tensor.data_ptr()
    except RuntimeError:  # a tensor subclass without storage of its own
        storage = 0
    version = -1 if tensor.is_inference() else tensor._version
    return storage, tuple(tensor.shape), tensor.dtype, version, getattr(tensor, "quant_state", None)


def _same(content: tuple[object, ...], before: tuple[object, ...]) -> bool:
    """Whether nothing changed; a quant_state is compared by identity."""
    return not before or (content[:-1] == before[:-1] and content[-1] is before[-1])


def _reshard_fsdp2(model: nn.Module, *, failed: bool) -> None:
    """Give FSDP2's gathered parameters back; after an exception also its state machine, stuck in FORWARD or BACKWARD.

    After a forward without a backward the root's parameters stay gathered, and an optimizer step would then leave
    the next forward reading the old weights.
    """
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # a torch built without distributed
        return
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        state: Any = module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None  # private: see the test
        if failed and getattr(state, "_is_root", False):  # unset before the first forward: nothing is stuck then
            if hasattr(module, "reset_iter_state"):  # torch 2.13: made for this
                module.reset_iter_state()
            else:  # what FSDP2 runs at the end of every backward
                state._root_post_backward_final_callback()
        module.reshard()


def _release_zero3(optimizer: object | None) -> None:
    """Partition again what ZeRO-3 gathered; it does so by itself only after a backward of its own engine."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps DeepSpeed's optimizer
    if hasattr(inner, "empty_partition_cache"):
        inner.empty_partition_cache()
