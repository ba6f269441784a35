"""Norms, gated MLPs and rotary embeddings of a model as single kernels, inside a block; nothing is left afterwards.

A part is replaced only where its code is that of Llama's: the same bytecode and constants (transformers copies it into
most model types), and no forward of its own on the instance. Everything else runs as it is.

Projections that read one input (q, k and v; gate and up) sum its gradient in their products. They must be plain
nn.Linear, and their hooks still run.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from inspect import unwrap
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.kernels.launch import DTYPES
from headwatch.kernels.model_ops import Linear, RmsNorm, Rotary, SwiGlu
from headwatch.model.forward import under_autocast
from headwatch.model.hooks import overridden

_ROTARY = "apply_rotary_pos_emb"
_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of projections that read one input


@contextmanager
def fused_parts(model: nn.Module) -> Iterator[int]:
    """Run the known norms, MLPs and rotary embeddings of a model as fused kernels inside the block.

    Rotary embeddings are functions of a model's file, so they are replaced for every model of that type, until the
    block ends.

    Yields:
        Number of parts that run as kernels.
    """
    count, llama = 0, _llama()
    with ExitStack() as stack:
        files = set()
        for module in model.modules():
            replacement = _replacement(module)
            if replacement is not None:
                stack.enter_context(overridden(module, forward=replacement))
                count += 1
            for projection, forward in _of_one_input(module):
                stack.enter_context(overridden(projection, forward=forward))
            files.add(type(module).__module__)
        for name in files:
            file = sys.modules.get(name)
            function = vars(file).get(_ROTARY) if file is not None else None
            if function is not None and same_code(function, llama.apply_rotary_pos_emb) and _llama_rotation(file):
                stack.enter_context(overridden(file, **{_ROTARY: _rotary(function)}))
                count += 1
        yield count


def same_code(function: Any, reference: Any) -> bool:
    """Whether two functions have the same bytecode, names and constants, docstrings aside."""
    codes = [getattr(unwrap(each), "__code__", None) for each in (function, reference)]
    return all(isinstance(code, CodeType) for code in codes) and _content(codes[0]) == _content(codes[1])


def _content(code: Any) -> tuple[Any, ...]:
    constants = tuple(each for each in code.co_consts if not isinstance(each, str))
    return code.co_code, code.co_names, code.co_varnames[: code.co_argcount], constants


@cache
def _llama() -> Any:
    """The reference, imported when kernels are first used."""
    from transformers.models.llama import modeling_llama

    return modeling_llama


def _llama_rotation(file: Any) -> bool:
    return same_code(vars(file).get("rotate_half"), _llama().rotate_half)


def _replacement(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward of a known module as fused kernels, or None."""
    if "forward" in vars(module):
        return None
    own: Any = module
    llama = _llama()
    forward = type(module).forward
    if same_code(forward, llama.LlamaRMSNorm.forward):
        return lambda hidden_states: _rms_norm(own, hidden_states)
    silu = (nn.SiLU, llama.ACT2FN["silu"].__class__)
    if same_code(forward, llama.LlamaMLP.forward) and type(own.act_fn) in silu:
        return lambda x: own.down_proj(_swiglu(own, x))
    return None


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    if x.dtype not in DTYPES or module.weight.dtype != x.dtype or not x.numel():
        return type(module).forward(module, x)
    return RmsNorm.apply(x, module.weight, module.variance_epsilon)


def _swiglu(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if gate.dtype not in DTYPES or up.dtype != gate.dtype:
        return module.act_fn(gate) * up
    return SwiGlu.apply(gate, up)


class _SharedInput:
    """The input that several linear maps read, one after the other: each takes it from the one before (`Linear`).

    Args:
        readers: number of maps, after whose calls the input is released.
    """

    def __init__(self, readers: int) -> None:
        self._readers = readers
        self._x: Tensor | None = None
        self._next: Tensor | None = None
        self._version = self._calls = 0

    def linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """The module's output; `x` is recognised as the input of the map before if it is the same, unchanged tensor."""
        if not _can_share(module, x):
            return nn.Linear.forward(module, x)
        if x is not self._x or x._version != self._version:
            self._x, self._next, self._version, self._calls = x, x, x._version, 0
        y, self._next = Linear.apply(self._next, module.weight, module.bias)
        self._calls += 1
        if self._calls == self._readers:
            self._x = self._next = None
        return y


def _can_share(module: nn.Linear, x: Tensor) -> bool:
    """Whether `Linear` can run: with gradients, of one dtype, and on a plain weight (none sharded or quantised)."""
    if not torch.is_grad_enabled() or not x.requires_grad or x.dim() < 2 or under_autocast(x.device):
        return False
    return type(module.weight) in (Tensor, nn.Parameter) and module.weight.dtype == x.dtype


def _of_one_input(module: nn.Module) -> Iterator[tuple[nn.Linear, Callable[[Tensor], Tensor]]]:
    """A module's projections that read one input, each with its forward."""
    for names in _ONE_INPUT:
        found = [getattr(module, name, None) for name in names]
        own = [each for each in found if type(each) is nn.Linear and "forward" not in vars(each)]
        shared = _SharedInput(len(own))
        for projection in own if len(own) > 1 else ():
            yield projection, _linear_forward(shared, projection)


def _linear_forward(shared: _SharedInput, projection: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        return shared.linear(projection, input)

    forward.same_function = True  # type: ignore[attr-defined]
    return forward


def _rotary(function: Any) -> Any:
    def fused(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        kinds = {q.dtype, k.dtype, cos.dtype, sin.dtype}
        shape = (q.shape[0], q.shape[2], q.shape[3])
        fits = unsqueeze_dim == 1 and cos.shape == sin.shape and cos.dim() == 3 and cos.shape[1:] == shape[1:]
        if len(kinds) > 1 or q.dtype not in DTYPES or not fits or cos.shape[0] not in (1, shape[0]):
            return function(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return Rotary.apply(q, k, cos, sin)

    return fused


def after_prefix_fits(*tensors: Tensor) -> bool:
    """Whether `AfterPrefix` can join these keys and values: one dtype, which the kernel copies exactly."""
    return len({each.dtype for each in tensors}) == 1 and tensors[0].dtype in DTYPES


def score_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's weights."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
