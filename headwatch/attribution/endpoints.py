"""The endpoints of the path: differences between the corrupted and the clean run, and the points between the two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.operations import PLAIN, Operations
from headwatch.attribution.path import ENDPOINTS, Endpoint
from headwatch.attribution.run_layout import RunLayout
from headwatch.model.anatomy import Anatomy
from headwatch.model.parts import Norm
from headwatch.model.precision import at_least_float32

RunsOf = Mapping[Endpoint, int]
"""Endpoint -> the index of its run in a forward pass."""


@dataclass(frozen=True)
class EndpointDifferences:
    """Differences corrupted - clean on the columns after C, and the logits of both runs.

    Attributes:
        embedding: of the embedding module's output, [B, T - C, M].
        input: of the first layer's input, [B, T - C, M].
        z: of the heads' outputs before o_proj, per layer, [B, T - C, H * D]; if a norm follows o_proj, of r z, where r
            is that norm's 1 / rms in the same run.
        r: of that r, per layer, [B, T - C, 1]; None without such a norm.
        mlp: of what the MLP adds to the residual stream, per layer, [B, T - C, M]; empty if it was not recorded.
        stream: of the final residual vector, [B, T - C, M].
        clean_logits, corrupted_logits: logits at the read positions, [B, P, V].
    """

    embedding: Tensor
    input: Tensor
    z: list[Tensor]
    r: list[Tensor | None]
    mlp: list[Tensor]
    stream: Tensor
    clean_logits: Tensor
    corrupted_logits: Tensor


class EndpointRecorder:
    """Records both endpoints: each in a run of its own, or as the first point of the path.

    Args:
        anatomy: the model.
        operations: the plain operations, or the fused ones.
        mlp: whether to record what the MLPs add to the stream, which edges and the stream check read.
    """

    def __init__(self, anatomy: Anatomy, operations: Operations = PLAIN, mlp: bool = True) -> None:
        self.anatomy, self.operations, self._records_mlp = anatomy, operations, mlp
        self.embeddings: dict[Endpoint, Tensor] = {}
        self._states: dict[tuple[Any, Endpoint], Tensor] = {}
        self._differences: dict[Any, Tensor] = {}
        self._logits: dict[Endpoint, Tensor] = {}

    def hooks(self, layout: RunLayout, runs: RunsOf) -> list[RemovableHandle]:
        """Register hooks for one forward pass; `runs` maps each endpoint to the index of its run."""

        def rows(states: Tensor) -> dict[Endpoint, Tensor]:
            return rows_of(states, layout, runs)

        def before(key: Any) -> Any:
            return lambda module, args: self._record(key, rows(args[0]))

        def after(key: Any, scale: float, modules: int) -> Any:
            """Record the sum of several modules' outputs."""
            outputs: list[Tensor] = []

            def hook(module: Any, args: tuple[Tensor, ...], output: Any) -> None:
                outputs.append(first_output(output, args).detach())
                if len(outputs) == modules:
                    summed = torch.stack(list(map(at_least_float32, outputs))).sum(0) if modules > 1 else outputs[0]
                    self._record(key, rows(summed), scale)
                    outputs.clear()

            return hook

        def keep_embedding(module: Any, args: Any, output: Tensor) -> None:
            self.embeddings.update(rows(output))

        handles = [
            self.anatomy.embedding.register_forward_hook(keep_embedding),
            self.anatomy.decoder_layers[0].register_forward_pre_hook(before("input")),
            self.anatomy.final_norm.register_forward_pre_hook(before("stream")),
        ]

        def through(index: int) -> Any:
            return lambda module, args, output: self._record(
                ("mlp", index), rows(at_least_float32(first_output(output, args)) - at_least_float32(args[0]))
            )

        for index, layer in enumerate(self.anatomy.layers):
            if layer.whole:
                continue
            if layer.attn_post_norm is None:
                handles.append(layer.out.register_forward_pre_hook(before(("z", index))))
            else:
                handles += self._post_norm_hooks(index, layer.out, layer.attn_post_norm, rows)
        for index, layer in enumerate(self.anatomy.layers) if self._records_mlp else ():
            if layer.whole:
                handles.append(layer.mlp.register_forward_hook(through(index)))
            else:
                adds = after(("mlp", index), layer.multiplier, len(layer.mlp_adds))
                handles += [module.register_forward_hook(adds) for module in layer.mlp_adds]
        return handles

    def record_logits(self, runs: RunsOf, logits: Tensor) -> None:
        """Record these runs' logits at the read positions, out of [n, B, P, V]."""
        for endpoint, run in runs.items():
            self._logits[endpoint] = at_least_float32(logits[run].detach())

    def differences(self) -> EndpointDifferences:
        """The differences, after both endpoints have run."""
        self._subtract_z()
        layers, first = range(self.anatomy.n_layers), self._differences["input"]
        none = first.new_zeros(()).expand(*first.shape[:-1], self.anatomy.n_heads * self.anatomy.head_dim)
        return EndpointDifferences(
            embedding=at_least_float32(self.embeddings["corrupted"]) - at_least_float32(self.embeddings["clean"]),
            input=self._differences["input"],
            z=[self._differences.get(("z", index), none) for index in layers],
            r=[self._differences.get(("r", index)) for index in layers],
            mlp=[self._differences["mlp", index] for index in layers] if self._records_mlp else [],
            stream=self._differences["stream"],
            clean_logits=self._logits["clean"],
            corrupted_logits=self._logits["corrupted"],
        )

    def _post_norm_hooks(
        self, index: int, out: torch.nn.Module, norm: Norm, rows: Callable[[Tensor], dict[Endpoint, Tensor]]
    ) -> list[RemovableHandle]:
        """Record r and r z of a layer with a norm after o_proj."""
        kept: list[Tensor] = []

        def keep(module: Any, args: tuple[Tensor, ...]) -> None:
            kept.append(args[0].detach())

        def multiply(module: Any, args: tuple[Tensor, ...]) -> None:
            r = norm.inverse_scale(at_least_float32(args[0].detach()))
            self._record(("r", index), rows(r))
            self._record(("z", index), rows(at_least_float32(kept.pop()) * r))

        return [out.register_forward_pre_hook(keep), norm.module.register_forward_pre_hook(multiply)]

    def _record(self, key: Any, states: Mapping[Endpoint, Tensor], scale: float = 1.0) -> None:
        """Keep the states [B, T, ...] of endpoints, or their difference once both are known.

        Without gradients, z is kept until `differences`, which subtracts that of all layers at once. No model changes
        the input of o_proj in place; with gradients, memory is short when the forward pass ends.
        """
        for endpoint, own in states.items():
            self._states[key, endpoint] = own
        if key[0] == "z" and not torch.is_grad_enabled():
            return
        if all((key, endpoint) in self._states for endpoint in ENDPOINTS):
            both = self._states.pop((key, "corrupted")), self._states.pop((key, "clean"))
            self._differences[key] = self.operations.difference(*both, scale)

    def _subtract_z(self) -> None:
        """The differences of all z that were kept, as views of one stack, [L, B, T - C, H * D]."""
        layers = [index for index in range(self.anatomy.n_layers) if (("z", index), "clean") in self._states]
        if not layers:
            return
        both = [
            torch.stack([self._states.pop((("z", index), endpoint)) for index in layers])
            for endpoint in ("corrupted", "clean")
        ]
        stacked = self.operations.difference(both[0], both[1], 1.0)
        self._differences |= {("z", index): own for index, own in zip(layers, stacked, strict=True)}


def rows_of(states: Tensor, layout: RunLayout, runs: RunsOf) -> dict[Endpoint, Tensor]:
    """Each endpoint's part of the states of a forward pass, [B, T, ...]."""
    return {endpoint: layout.by_run(states.detach())[run] for endpoint, run in runs.items()}


def first_output(output: Any, args: tuple[Tensor, ...]) -> Tensor:
    """A module's output, or the first of several (expert blocks may also return router logits), [B, T, M].

    Args:
        output: what the module returned; Llama 4's expert blocks return a flat list of tokens, [B T, M].
        args: the module's inputs, the first of [B, T, M].
    """
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first.view_as(args[0]) if first.dim() < args[0].dim() else first


def interpolated(clean: Tensor, corrupted: Tensor, alphas: Sequence[float]) -> Tensor:
    """x(alpha) = corrupted + alpha (clean - corrupted) for every alpha, [m, B, T - C, M].

    At alpha 0 and 1 it equals the endpoint to the last bit, so the run is that endpoint's run.
    """
    start, stop = at_least_float32(corrupted), at_least_float32(clean)
    exact, towards = {0.0: start, 1.0: stop}, stop - start
    return torch.stack([exact[a] if a in exact else start.add(towards, alpha=a) for a in alphas]).to(clean.dtype)
