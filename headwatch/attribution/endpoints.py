"""Both ends of the path: what the clean and the corrupted run leave behind, and the points between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.path import ENDS, End
from headwatch.attribution.run_layout import Arrangement
from headwatch.model.anatomy import Anatomy, Norm
from headwatch.model.forward import wide


@dataclass(frozen=True)
class Endpoints:
    """What the clean and the corrupted run leave behind; differences are corrupted - clean, on the columns after C.

    Attributes:
        embedding: difference of the embedding module's output, [B, T - C, M].
        input: difference of what enters the first layer, [B, T - C, M].
        z: difference of the heads' outputs before o_proj, one a layer, [B, T - C, H * D]; where there is a norm behind
            o_proj, of each run's own r z, r being that norm's 1 / rms.
        r: difference of that r, one a layer, [B, T - C, 1], or None where there is no such norm.
        mlp: difference of what the MLP adds to the residual stream, one a layer, [B, T - C, M].
        stream: difference of the final residual vector, [B, T - C, M].
        rounding: how far rounding may move `stream` away from the sum of the sources, one standard deviation for each
            entry, [B, T - C, M]; None where it was not measured.
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
    rounding: Tensor | None = None


class EndRecorder:
    """Records both ends from whichever runs they appear in: a run of their own, or the first of the points between.

    Args:
        anatomy: the model.
        measure_rounding: also measure what rounding does to the residual stream (`Endpoints.rounding`).
    """

    def __init__(self, anatomy: Anatomy, measure_rounding: bool = False) -> None:
        self.anatomy = anatomy
        self._rounding: dict[str, Tensor] | None = {} if measure_rounding else None
        self.embeddings: dict[End, Tensor] = {}
        self._seen: dict[tuple[Any, End], Tensor] = {}
        self._difference: dict[Any, Tensor] = {}
        self._logits: dict[End, Tensor] = {}

    def hooks(self, arrangement: Arrangement, runs: Mapping[End, int]) -> list[RemovableHandle]:
        """Put hooks on for one call, of which these runs are ends."""

        def rows(states: Tensor) -> dict[End, Tensor]:
            return {end: arrangement.by_run(states.detach())[run] for end, run in runs.items()}

        def before(key: Any) -> Any:
            return lambda module, args: self._take(key, rows(args[0]))

        def after(key: Any, scale: float) -> Any:
            return lambda module, args, output: self._take(key, rows(first_output(output)), scale)

        def keep_embedding(module: Any, args: Any, output: Tensor) -> None:
            self.embeddings.update(rows(output))

        handles = [
            self.anatomy.embedding.register_forward_hook(keep_embedding),
            self.anatomy.decoder_layers[0].register_forward_pre_hook(before("input")),
            self.anatomy.final_norm.register_forward_pre_hook(before("stream")),
        ]
        for index, layer in enumerate(self.anatomy.layers):
            if layer.attn_post_norm is None:
                handles.append(layer.out.register_forward_pre_hook(before(("z", index))))
            else:
                handles += self._times_r(index, layer.out, layer.attn_post_norm, rows)
            handles.append(layer.mlp_adds.register_forward_hook(after(("mlp", index), layer.multiplier)))
        return handles + (self._rounding_hooks(rows) if self._rounding is not None else [])

    def _rounding_hooks(self, rows: Callable[[Tensor], dict[End, Tensor]]) -> list[RemovableHandle]:
        """Add up the variance of rounding: of every sum in the residual stream, and of what is added to it."""
        added = self._rounding
        assert added is not None

        def add(states: Tensor, times: float) -> None:
            unit = torch.finfo(states.dtype).eps / 2
            for mine in rows(states).values():
                variance = (wide(mine) * unit).square() * times
                added["variance"] = added["variance"] + variance if "variance" in added else variance

        def of_input(module: Any, args: tuple[Tensor, ...]) -> None:
            add(args[0], 2.0)  # attention and MLP are added one after the other

        def of_output(multiplier: float) -> Any:
            return lambda module, args, output: add(first_output(output), multiplier**2)

        handles = [self.anatomy.final_norm.register_forward_pre_hook(of_input)]
        for decoder_layer, layer in zip(self.anatomy.decoder_layers, self.anatomy.layers, strict=True):
            attention_adds = layer.out if layer.attn_post_norm is None else layer.attn_post_norm.module
            handles.append(decoder_layer.register_forward_pre_hook(of_input))
            handles.append(attention_adds.register_forward_hook(of_output(layer.multiplier)))
            handles.append(layer.mlp_adds.register_forward_hook(of_output(layer.multiplier)))
        return handles

    def take_logits(self, runs: Mapping[End, int], logits: Tensor) -> None:
        """Keep these runs' logits at the read positions, of [n, B, P, V]."""
        for end, run in runs.items():
            self._logits[end] = wide(logits[run].detach())

    def ends(self) -> Endpoints:
        """Both ends, after the runs that hold them."""
        layers = range(self.anatomy.n_layers)
        return Endpoints(
            embedding=wide(self.embeddings["corrupted"]) - wide(self.embeddings["clean"]),
            input=self._difference["input"],
            z=[self._difference["z", index] for index in layers],
            r=[self._difference.get(("r", index)) for index in layers],
            mlp=[self._difference["mlp", index] for index in layers],
            stream=self._difference["stream"],
            clean_logits=self._logits["clean"],
            corrupted_logits=self._logits["corrupted"],
            rounding=None if self._rounding is None else self._rounding["variance"].sqrt(),
        )

    def _times_r(
        self, index: int, out: torch.nn.Module, norm: Norm, rows: Callable[[Tensor], dict[End, Tensor]]
    ) -> list[RemovableHandle]:
        kept: list[Tensor] = []

        def keep(module: Any, args: tuple[Tensor, ...]) -> None:
            kept.append(args[0].detach())

        def multiply(module: Any, args: tuple[Tensor, ...]) -> None:
            r = norm.inverse_scale(wide(args[0].detach()))
            self._take(("r", index), rows(r))
            self._take(("z", index), rows(wide(kept.pop()) * r))

        return [out.register_forward_pre_hook(keep), norm.module.register_forward_pre_hook(multiply)]

    def _take(self, key: Any, states: Mapping[End, Tensor], scale: float = 1.0) -> None:
        """Keep what these ends left, [B, T, ...] each, or their difference as soon as both ends are there."""
        for end, mine in states.items():
            self._seen[key, end] = wide(mine)
        if all((key, end) in self._seen for end in ENDS):
            difference = self._seen.pop((key, "corrupted")) - self._seen.pop((key, "clean"))
            self._difference[key] = difference if scale == 1.0 else difference * scale


def first_output(output: Any) -> Tensor:
    """A module's output, or the first of several (expert blocks may return what their router said beside it)."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def interpolated(clean: Tensor, corrupted: Tensor, alphas: Sequence[float]) -> Tensor:
    """x(alpha) = corrupted + alpha (clean - corrupted) for every alpha, [m, B, T - C, M].

    At alpha 0 and 1 it is that end to the last bit, so that the run is that end's run.
    """
    exact = {0.0: corrupted, 1.0: clean}
    start, towards = wide(corrupted), wide(clean) - wide(corrupted)
    return torch.stack([exact[a] if a in exact else (start + a * towards).to(clean.dtype) for a in alphas])
