"""Hooks of the user's that change values between the parts of a layer: scores assume that there are none.

A query, key or value is expanded as a linear map of the residual vector (edges.py). A hook that changes it, or its
input, or what a norm reads, makes edge scores wrong without any other sign. Hooks that change nothing (logging) are no
obstacle; hooks on the input of o_proj, the MLP and the embeddings are part of what is scored.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headwatch.errors import UnsupportedModelError
from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import has_own_forward
from headwatch.model.linear_map import linear_map
from headwatch.model.precision import at_least_float32

_LIMIT = 0.05  # largest difference of a replaced forward from a linear map, over its largest output; covers 16 bits


class HookCheck:
    """Compares what each module with hooks receives and returns before and after these hooks, in one forward pass."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._names = {id(module): name for name, module in anatomy.model.named_modules()}

    def hooks(self) -> list[RemovableHandle]:
        """Register hooks for one forward pass, before all others of the pass."""
        handles = []
        for module, reads, writes in self._parts():
            if reads and module._forward_pre_hooks:
                handles += self._around_input(module)
            if writes and module._forward_hooks:
                handles += self._around_output(module)
        for layer in self._anatomy.layers:
            for projection in layer.projections:
                if has_own_forward(projection.module):
                    handles.append(projection.module.register_forward_hook(self._compare_with_linear_map))
        return handles

    def _parts(self) -> list[tuple[nn.Module, bool, bool]]:
        """Modules whose input or output the formulas take as they find it: (module, input, output)."""
        parts: list[tuple[nn.Module, bool, bool]] = [(self._anatomy.final_norm, True, False)]
        for decoder_layer, layer in zip(self._anatomy.decoder_layers, self._anatomy.layers, strict=True):
            parts.append((decoder_layer, True, True))
            if layer.whole:
                continue
            parts += [(layer.attention, True, True), (layer.out, False, True)]
            parts += [(norm.module, True, True) for norm in (layer.attn_norm, layer.attn_post_norm) if norm is not None]
            for projection in layer.projections:
                parts.append((projection.module, True, True))
                if projection.norm is not None:
                    parts.append((projection.norm.module, True, True))
            parts.append((layer.mlp_reads, True, False))
        return parts

    def _around_input(self, module: nn.Module) -> list[RemovableHandle]:
        before: list[Tensor] = []

        def first(module: nn.Module, args: Any, kwargs: Any) -> None:
            before[:] = [_states(args, kwargs).clone()]

        def last(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._compare(module, before.pop(), _states(args, kwargs), "forward pre-hook", "input")

        return [
            module.register_forward_pre_hook(first, with_kwargs=True, prepend=True),
            module.register_forward_pre_hook(last, with_kwargs=True),
        ]

    def _around_output(self, module: nn.Module) -> list[RemovableHandle]:
        before: list[Tensor] = []

        def first(module: nn.Module, args: Any, output: Any) -> None:
            before[:] = [_states((output,), {}).clone()]

        def last(module: nn.Module, args: Any, output: Any) -> None:
            self._compare(module, before.pop(), _states((output,), {}), "forward hook", "output")

        return [module.register_forward_hook(first, prepend=True), module.register_forward_hook(last)]

    def _compare(self, module: nn.Module, before: Tensor, after: Tensor, kind: str, what: str) -> None:
        before = before.to(after.dtype)  # FSDP2 casts inputs
        if torch.equal(before, after) or torch.equal(before.nan_to_num(), after.nan_to_num()):
            return
        raise UnsupportedModelError(
            f"model: a {kind} on {self._names.get(id(module), type(module).__name__)} changes its {what}, which edge "
            "scores do not follow; remove the hook, or register it on the input of o_proj"
        )

    @torch.no_grad()
    def _compare_with_linear_map(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A projection whose forward was replaced on the instance must still be a linear map."""
        weight, bias = linear_map(module, args[0].shape[-1])
        error = (at_least_float32(args[0]) @ weight.T + bias - at_least_float32(output)).abs().max()
        if error > _LIMIT * output.abs().max():
            raise UnsupportedModelError(
                f"model: the forward of {self._names.get(id(module), type(module).__name__)} was replaced by one that "
                "is not a linear map, so edge scores would be wrong"
            )


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor among a module's inputs or outputs."""
    for value in (*args, kwargs.get("hidden_states")):
        value = value[0] if isinstance(value, tuple) else value
        if isinstance(value, Tensor):
            return value
    return torch.zeros(())
