"""Norms, gated MLPs and rotary embeddings of a model as single kernels, inside a block; nothing is left afterwards.

A part is replaced only where its code is that of Llama's: the same bytecode and constants (transformers copies it into
most model types), and no forward of its own on the instance. Everything else runs as it is.
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
from headwatch.kernels.model_ops import RmsNorm, Rotary, SwiGlu
from headwatch.model.hooks import overridden

_ROTARY = "apply_rotary_pos_emb"


@contextmanager
def fused_parts(model: nn.Module) -> Iterator[int]:
    """Run the known norms, MLPs and rotary embeddings of a model as fused kernels inside the block.

    Rotary embeddings are functions of a model's file, so they are replaced for every model of that type, until the
    block ends.

    Yields:
        Number of replaced parts.
    """
    count, llama = 0, _llama()
    with ExitStack() as stack:
        files = set()
        for module in model.modules():
            replacement = _replacement(module)
            if replacement is not None:
                stack.enter_context(overridden(module, forward=replacement))
                count += 1
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
