"""A read-only pass over a model in training: weights, modes and random states are the same afterwards."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, CheckpointWrapper

from headwatch.model.hooks import overridden
from headwatch.model.whole_weights import sharding, whole_weights

logger = logging.getLogger(__name__)

_TRACE = "headwatch: the read-only pass left a trace: "

Undo = Callable[[], object]


class ReadOnlyError(RuntimeError):
    """The pass changed the model, or one of its temporary changes could not be undone."""


class PassScope:
    """Undo steps of a pass, run in reverse order when it ends, also after an exception.

    A step that fails does not prevent the others from running.
    """

    def __init__(self) -> None:
        self._undo: list[Undo] = []

    def on_exit(self, undo: Undo) -> None:
        """Register `undo()` to be called when the pass ends."""
        self._undo.append(undo)

    def _run(self) -> list[str]:
        """Undo everything, newest first; return the failures, one line each."""
        failures = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:  # the remaining steps still have to run
                failures.append(f"{type(error).__name__}: {error}")
        return failures


@contextmanager
def read_only_pass(model: nn.Module, optimizer: object | None = None) -> Iterator[PassScope]:
    """Run the body with `model` in eval mode, gradients enabled and all parameters frozen; then restore everything.

    Parameters that FSDP2 or ZeRO-3 shard are whole inside (`whole_weights`), so with these every process must enter.
    Activation checkpointing is off inside.

    Restored, whether the body returns or raises: the random states (Python, numpy, torch on the CPU, the current CUDA
    device and MPS), `.training` of every module, `.requires_grad` of every parameter, the state of length-dependent
    rotary embeddings, the sharding of FSDP2 and ZeRO-3 parameters, and what the body registers with the yielded
    `PassScope`. Passes nest.

    Args:
        model: the model as the trainer holds it: bare, PeftModel, FSDP2 or ZeRO-3 sharded (never the DDP wrapper).
        optimizer: the trainer's optimizer; required only under ZeRO-3, where it holds the parameter partitions.

    Yields:
        The scope in which the body registers undo steps. For hooks and attributes use `headwatch.model.hooks`.

    Raises:
        ReadOnlyError: a parameter's `.grad` or value changed inside (a replaced `.grad` is restored first), or an undo
            step failed. If the body raised, its own exception propagates, with these problems as a note: see
            `left_trace`.
    """
    outer, inner, scope = PassScope(), PassScope(), PassScope()  # undone in reverse order
    outer.on_exit(_random_state())
    checks = [_parameter_check(model)]
    gathered = ExitStack()
    gathered.enter_context(whole_weights(model, optimizer))
    if sharding(model):
        checks.append(_parameter_check(model))  # the gathered parameters are others
    inner.on_exit(_flags(model))
    inner.on_exit(_rotary_state(model))
    inner.on_exit(_four_bit_state(model))
    inner.on_exit(_checkpoint_wrappers(model))
    body_failed: BaseException | None = None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            model.eval()  # no dropout, no activation checkpointing
            for parameter in model.parameters():
                parameter.requires_grad_(False)  # only activation gradients: a third less arithmetic
            yield scope
    except BaseException as error:
        body_failed = error
        raise
    finally:
        problems = scope._run() + inner._run()
        problems += [line for check in checks[1:] for line in check()]
        failure = (None, None, None) if body_failed is None else (type(body_failed), body_failed, None)
        outer.on_exit(lambda: gathered.__exit__(*failure))
        problems += outer._run() + checks[0]()
        if problems:
            message = _TRACE + "; ".join(problems)
            if body_failed is None:
                raise ReadOnlyError(message)
            body_failed.add_note(message)
            logger.error(message)


def left_trace(error: BaseException) -> bool:
    """Whether an exception raised by `read_only_pass` reports that the model is not in its original state."""
    return isinstance(error, ReadOnlyError) or any(note.startswith(_TRACE) for note in getattr(error, "__notes__", ()))


def _random_state() -> Undo:
    """Save every random state that a forward pass can use; on CUDA that of the current device."""
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
    """Save .training of every module and .requires_grad of every parameter; neither needs to be uniform."""
    training = [(module, module.training) for module in model.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for module, mode in training:
            module.training = mode
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)

    return restore


def _rotary_state(model: nn.Module) -> Undo:
    """Save the frequencies of rotary embeddings, which may depend on the longest sequence so far.

    `rope_type="dynamic"` and `"longrope"` replace or overwrite their `inv_freq` buffer in forward
    (transformers.modeling_rope_utils.dynamic_rope_update), so short probe prompts would change the next training step.
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
                buffer.copy_(content)  # in place: CUDA graphs replay from this address
                module._buffers[name] = buffer

    return restore


def _four_bit_state(model: nn.Module) -> Undo:
    """Prevent bitsandbytes' 4-bit layers from repacking themselves in forward, and save what forward sets.

    On CPUs with avx512_bf16 an evaluation forward of `Linear4bit` repacks its weight for inference, after which no
    gradient passes the layer; and the first forward of any mode fixes the dtype that the layer computes in, and casts
    its bias to it.
    """
    repacks, set_by_forward = "support_avx512bf16_for_cpu", ("compute_dtype", "compute_type_is_set")
    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, repacks):
                kept = {name: getattr(module, name) for name in set_by_forward if hasattr(module, name)}
                stack.enter_context(overridden(module, **kept, **{repacks: False}))
                if isinstance(module.bias, Tensor):
                    stack.callback(setattr, module.bias, "data", module.bias.data)
        return stack.pop_all().close


def _checkpoint_wrappers(model: nn.Module) -> Undo:
    """Let torch's checkpoint_wrapper call its module directly; it recomputes the forward pass in eval mode as well.

    FSDP_ACTIVATION_CHECKPOINTING uses it. The hooks of the pass would run twice, the second time during backward.
    """

    def direct(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, CheckpointWrapper):
                stack.enter_context(
                    overridden(module, checkpoint_fn=direct, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
                )
        return stack.pop_all().close


def _parameter_check(model: nn.Module) -> Callable[[], list[str]]:
    """Remember every parameter and its gradient; the returned check lists what changed, one line each."""
    before = [
        (name, parameter, _content(parameter), parameter.grad, _content(parameter.grad))
        for name, parameter in model.named_parameters()
    ]

    def check() -> list[str]:
        problems = []
        for name, parameter, content, grad, grad_content in before:
            if parameter.grad is not grad:
                parameter.grad = grad
                problems.append(f"{name}.grad was set inside (now restored; use torch.autograd.grad, not .backward())")
            elif not _same(_content(grad), grad_content):
                problems.append(f"{name}.grad was changed in place inside")
            if not _same(_content(parameter), content):
                problems.append(f"{name} was changed in place inside")
        return problems if len(problems) <= 3 else [*problems[:3], f"and {len(problems) - 3} more like it"]

    return check


def _content(tensor: Tensor | None) -> tuple[object, ...]:
    """Fingerprint of a tensor without reading its values: address, shape, dtype, in-place version, quantisation state.

    Empty for sharded parameters (DTensor, ZeRO-3), which gathering rewrites.
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
    """Whether two fingerprints are equal; quantisation states are compared by identity."""
    return not before or (content[:-1] == before[:-1] and content[-1] is before[-1])
