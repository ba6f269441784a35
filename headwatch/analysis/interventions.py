"""Interventions on heads: scale a head's output, or replace it by its mean, during a forward pass or in the weights.

A head's output is z_h W_O,h, so scaling z_h (a hook before o_proj) and scaling the columns of o_proj that read z_h (the
weights) are the same. Factor 0 switches the head off. A bias of o_proj belongs to no head and is left unchanged.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headwatch.errors import UnsupportedModelError, UserError
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import callers_autocast
from headwatch.model.head_names import Head, parse_head
from headwatch.model.hooks import hooked
from headwatch.model.parts import Layer
from headwatch.model.precision import at_least_float32
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet

HeadId = str | Head
Heads = Mapping[Any, float] | Iterable[HeadId]
"""Heads with a factor each, or heads that share one factor."""


@contextmanager
def scaled_heads(model: nn.Module, heads: Heads, factor: float = 0.0) -> Iterator[None]:
    """Multiply the outputs of heads inside the block, by hooks; the weights are not touched.

    Args:
        model: a Hugging Face causal language model, plain, compiled or wrapped by PEFT.
        heads: {head: factor}, or heads that all get `factor`. A head is "L17.H3", "a17.h3", "17.3" or (17, 3).
        factor: 0 switches heads off.

    Raises:
        UserError: a head that the model does not have, or a factor that is not a finite number.
        UnsupportedModelError: the model is not supported.

    >>> with scaled_heads(model, {"L5.H1": 0.0, "L7.H3": 1.3}): ...     # doctest: +SKIP
    """
    anatomy = Anatomy.of(model)
    by_layer = _by_layer(anatomy, factors_of(heads, factor, (anatomy.n_layers, anatomy.n_heads)))

    def scale(factors: dict[int, float]) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].unflatten(-1, (anatomy.n_heads, anatomy.head_dim))
            weights = z.new_ones(anatomy.n_heads, 1)
            for head, value in factors.items():
                weights[head] = value
            return ((z * weights).flatten(-2), *args[1:])

        return hook

    with hooked(*(anatomy.layers[i].out.register_forward_pre_hook(scale(f)) for i, f in by_layer.items())):
        yield


@contextmanager
def mean_ablated_heads(model: nn.Module, heads: Iterable[HeadId], reference: ProbeSet | Tensor) -> Iterator[None]:
    """Replace the outputs of heads by their mean over a reference set inside the block, at every position.

    Unlike a head that is switched off, a mean-ablated head leaves the size of the residual stream unchanged on average.

    Args:
        model: see `scaled_heads`.
        heads: the heads.
        reference: pairs, over whose clean prompts the mean is taken now, or the means themselves (`mean_outputs`).

    Raises:
        UserError: a head that the model does not have, or means of another model.
    """
    anatomy = Anatomy.of(model)
    chosen = [parse_head(head, (anatomy.n_layers, anatomy.n_heads)) for head in heads]
    means = mean_outputs(model, reference) if isinstance(reference, ProbeSet) else reference
    if means.shape != (anatomy.n_layers, anatomy.n_heads, anatomy.head_dim):
        raise UserError(
            f"reference: means of shape {tuple(means.shape)}; this model's are "
            f"[{anatomy.n_layers}, {anatomy.n_heads}, {anatomy.head_dim}] (mean_outputs(model, probes))"
        )

    def replace(layer: int, own: list[int]) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].unflatten(-1, (anatomy.n_heads, anatomy.head_dim)).clone()
            z[..., own, :] = means[layer, own].to(z)
            return (z.flatten(-2), *args[1:])

        return hook

    by_layer: dict[int, list[int]] = {}
    for layer, head in chosen:
        by_layer.setdefault(layer, []).append(head)
    with hooked(*(anatomy.layers[i].out.register_forward_pre_hook(replace(i, own)) for i, own in by_layer.items())):
        yield


def mean_outputs(model: nn.Module, probes: ProbeSet, batch_size: int = 8) -> Tensor:
    """Mean output of every head before o_proj, over all tokens of the clean prompts, [L, H, D]; float32 or float64.

    Args:
        model: see `scaled_heads`; it is left unchanged.
        probes: the reference set.
        batch_size: prompts per forward pass.
    """
    anatomy = Anatomy.of(model)
    device = next(model.parameters()).device
    sums: dict[int, Tensor] = {}
    mask = torch.empty(0)

    def add(index: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            total = (at_least_float32(args[0]) * mask[..., None]).sum((0, 1))
            sums[index] = sums[index] + total if index in sums else total

        return hook

    hooks = [layer.out.register_forward_pre_hook(add(index)) for index, layer in enumerate(anatomy.layers)]
    with (
        hooked(*hooks),
        read_only_pass(model),
        torch.no_grad(),
        callers_autocast(anatomy.model, device) as call,
    ):
        # Rows of one shape per pass: eager attention in float64 turns a padding row into NaN (see attribution/batching)
        for rows in _same_length(probes, batch_size):
            real = probes.attention_mask[rows[0]].bool()
            mask = torch.ones(len(rows), int(real.sum()), device=device)
            call(input_ids=probes.clean[rows][:, real].to(device), use_cache=False, logits_to_keep=1)
    none = torch.zeros_like(next(iter(sums.values())))  # layers without heads
    means = torch.stack([sums.get(index, none) for index in range(anatomy.n_layers)]) / int(probes.attention_mask.sum())
    return means.unflatten(-1, (anatomy.n_heads, anatomy.head_dim)).cpu()


@torch.no_grad()
def write_scaled_heads(model: nn.Module, heads: Heads, factor: float = 0.0) -> None:
    """Multiply the outputs of heads in the weights, in place: the columns of o_proj that read these heads.

    Afterwards the model behaves as inside `scaled_heads`, in every program that loads it.

    Args:
        model: a model without adapters (merge them first) whose o_proj is not quantised.
        heads, factor: see `scaled_heads`.

    Raises:
        UserError: a head that the model does not have, adapters, or quantised weights; no weight is changed then.

    >>> write_scaled_heads(model, ["L5.H1"], 0.5)       # doctest: +SKIP
    """
    if getattr(model, "peft_config", None):
        raise UserError("model: it has adapters; merge them first (model = model.merge_and_unload())")
    anatomy = Anatomy.of(model)
    by_layer = _by_layer(anatomy, factors_of(heads, factor, (anatomy.n_layers, anatomy.n_heads)))
    weights = {index: _weight(anatomy, index) for index in by_layer}
    for index, factors in by_layer.items():
        for head, value in factors.items():
            columns = slice(head * anatomy.head_dim, (head + 1) * anatomy.head_dim)
            weights[index][:, columns] *= value


def factors_of(heads: Heads, factor: float, shape: tuple[int, int]) -> dict[Head, float]:
    """{(layer, head): factor} of `heads` and `factor` as `scaled_heads` takes them.

    Raises:
        UserError: a head outside the model, or a factor that is not a finite number.
    """
    given = dict(heads) if isinstance(heads, Mapping) else dict.fromkeys(heads, factor)
    found = {}
    for head, value in given.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"factor={value!r} of head {head!r} must be a finite number (0 switches the head off)")
        found[parse_head(head, shape)] = float(value)
    return found


def _by_layer(anatomy: Anatomy, factors: Mapping[Head, float]) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    for (layer, head), value in factors.items():
        if anatomy.layers[layer].whole:
            raise UserError(f"head L{layer}.H{head}: layer {layer} has no attention heads")
        found.setdefault(layer, {})[head] = value
    return found


def _weight(anatomy: Anatomy, index: int) -> Tensor:
    """o_proj's weight [M, H D] as a view that may be written."""
    layer: Layer = anatomy.layers[index]
    out: Any = layer.out
    where = f"model: o_proj of layer {index} ({type(out).__name__})"
    if type(out) not in (nn.Linear, Conv1D) or type(out.weight) is not nn.Parameter:
        raise UnsupportedModelError(
            f"{where} is quantised, sharded or adapted, so heads cannot be scaled in its weights; use scaled_heads "
            "(hooks), or load the model in float32 or bfloat16 and merge its adapters"
        )
    if not out.weight.is_floating_point() or out.weight.numel() != anatomy.d_model * anatomy.n_heads * anatomy.head_dim:
        raise UnsupportedModelError(
            f"{where} holds no plain weights, so heads cannot be scaled in them; use scaled_heads"
        )
    shared = [
        i for i, other in enumerate(anatomy.layers) if i != index and getattr(other.out, "weight", 0) is out.weight
    ]
    if shared:
        raise UnsupportedModelError(
            f"{where} shares its weights with layer {shared[0]}, so a head of one of them cannot be "
            "scaled alone; use scaled_heads"
        )
    weight: Tensor = out.weight.data
    return weight if type(out) is nn.Linear else weight.T


def _same_length(probes: ProbeSet, batch_size: int) -> Iterator[list[int]]:
    """Rows with the same real columns, at most `batch_size` at once."""
    groups: dict[bytes, list[int]] = {}
    for row in range(len(probes)):
        groups.setdefault(probes.attention_mask[row].numpy().tobytes(), []).append(row)
    for rows in groups.values():
        yield from (rows[first : first + batch_size] for first in range(0, len(rows), batch_size))
