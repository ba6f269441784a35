"""How several runs of one batch lie in one call of the model: one after the other, or beside one another."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import hooked

Masks = dict[int, Tensor]
"""What each attention layer was given as its mask, [B or 1, heads or 1, T, C + T]: bool, or a number to be added."""


@dataclass(frozen=True)
class Arrangement:
    """n runs of B pairs, each on the T columns after the cut.

    One after the other they are rows, [n B, T, ...], each with a copy of the prefix's keys and values. Beside one
    another they are columns, [B, n T, ...], behind one prefix for all of them, and the attention masks keep them apart.
    Where the prefix is much longer than the rest, its copies are what costs memory and time.

    Attributes:
        pairs: B.
        runs: n.
        masks: what each layer lets one run see, where they lie beside one another; None: one after the other.
    """

    pairs: int
    runs: int
    masks: Masks | None = None

    @property
    def beside(self) -> bool:
        """Whether they lie beside one another."""
        return self.masks is not None

    def join(self, states: Tensor) -> Tensor:
        """[n, B, T, ...] -> [n B, T, ...] or [B, n T, ...]."""
        return states.transpose(0, 1).flatten(1, 2) if self.beside else states.flatten(0, 1)

    def by_run(self, states: Tensor) -> Tensor:
        """The reverse, of any number of columns a run, as a view: [n, B, T, ...]."""
        if self.beside:
            return states.unflatten(1, (self.runs, -1)).transpose(0, 1)
        return states.unflatten(0, (self.runs, -1))

    def by_token(self, states: Tensor) -> Tensor:
        """All runs of one token together, [B T, n, W]."""
        return rearrange(self.by_run(states), "n b t w -> (b t) n w")

    def repeat(self, states: Tensor) -> Tensor:
        """Every run's copy of what the pairs have, [B, T, ...], joined."""
        return self.join(states.expand(self.runs, *states.shape))

    def last_columns(self, keep: int, length: int, device: torch.device) -> Tensor:
        """Indices of every run's last `keep` of `length` columns, among the columns of the call."""
        runs = self.runs if self.beside else 1
        return torch.arange(runs * length, device=device).view(runs, length)[:, -keep:].flatten()

    @contextmanager
    def apart(self, anatomy: Anatomy) -> Iterator[None]:
        """Inside, runs that lie beside one another do not see each other: each sees what its mask alone lets it see.

        Whatever a layer's mask means (causal, a sliding window, padding) is kept, because it is the model's own.
        """
        made: dict[int, Tensor] = {}  # of each mask once: most models give one and the same to many layers

        def give(mask: Tensor) -> Any:
            def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                if id(mask) not in made:
                    made[id(mask)] = widened(mask, self.runs)
                return args, {**kwargs, "attention_mask": made[id(mask)]}

            return hook

        masks = self.masks or {}
        layers = anatomy.layers
        with hooked(
            *(layers[i].attention.register_forward_pre_hook(give(mask), with_kwargs=True) for i, mask in masks.items())
        ):
            yield


def lie_beside(prefix: int, length: int, runs: int) -> bool:
    """Whether runs of `length` tokens each had better lie beside one another behind a prefix of so many.

    What each then attends to and does not need, the other runs, is to be less than the prefix, which is copied for each
    otherwise: measured on the CPU the two take as long at about that length (dev/log.md).
    """
    return prefix > (runs - 1) * length > 0


class MaskRecorder:
    """Keeps the masks that the model makes for its own attention layers in one call of runs one after the other."""

    def __init__(self, anatomy: Anatomy, pairs: int) -> None:
        self._anatomy, self._pairs = anatomy, pairs
        self._masks: Masks = {}

    def hooks(self) -> list[RemovableHandle]:
        """Put hooks on for one call."""

        def keep(index: int) -> Any:
            def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
                mask = kwargs.get("attention_mask")
                if isinstance(mask, Tensor) and mask.dim() == 4:
                    self._masks[index] = mask

            return hook

        return [
            layer.attention.register_forward_pre_hook(keep(index), with_kwargs=True)
            for index, layer in enumerate(self._anatomy.layers)
        ]

    def masks(self) -> Masks | None:
        """The masks of all layers; None where one has none that says everything, as under FlashAttention."""
        if len(self._masks) < self._anatomy.n_layers:
            return None
        first = {id(mask): mask[: self._pairs] for mask in self._masks.values()}  # one for all layers that share one
        return {index: first[id(mask)] for index, mask in self._masks.items()}


def widened(mask: Tensor, runs: int) -> Tensor:
    """One run's mask [B, h, T, C + T] for several runs beside one another: [B, h, n T, C + n T]."""
    length = mask.shape[-2]
    prefix, own = mask.split([mask.shape[-1] - length, length], -1)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    square = mask.new_full((*mask.shape[:2], runs, length, runs, length), hidden)
    square.diagonal(dim1=2, dim2=4).copy_(own[..., None])
    return torch.cat([prefix.repeat(1, 1, runs, 1), square.flatten(4, 5).flatten(2, 3)], -1)
