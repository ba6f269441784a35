"""The layout of several runs of one batch in one forward pass: stacked along the batch or packed along the sequence."""

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
"""Attention mask by layer, [B or 1, heads or 1, T, C + T]: bool, or additive."""


@dataclass(frozen=True)
class RunLayout:
    """n runs of B pairs, each on the T columns after the cut.

    Stacked runs are rows, [n B, T, ...], each with its own copy of the prefix's keys and values. Packed runs are
    columns, [B, n T, ...], after one shared prefix, and attention masks separate them. Packing saves the copies, which
    dominate memory and time if the prefix is much longer than T.

    Attributes:
        pairs: B.
        runs: n.
        masks: the mask of one run in each layer, if the runs are packed; None if they are stacked.
    """

    pairs: int
    runs: int
    masks: Masks | None = None

    @property
    def packed(self) -> bool:
        """Whether the runs are packed along the sequence."""
        return self.masks is not None

    def join(self, states: Tensor) -> Tensor:
        """[n, B, T, ...] -> [n B, T, ...] or [B, n T, ...]."""
        return states.transpose(0, 1).flatten(1, 2) if self.packed else states.flatten(0, 1)

    def by_run(self, states: Tensor) -> Tensor:
        """Inverse of `join`, for any number of columns per run, as a view: [n, B, T, ...]."""
        if self.packed:
            return states.unflatten(1, (self.runs, -1)).transpose(0, 1)
        return states.unflatten(0, (self.runs, -1))

    def by_token(self, states: Tensor) -> Tensor:
        """The runs of each token, [B T, n, W]."""
        return rearrange(self.by_run(states), "n b t w -> (b t) n w")

    def repeat(self, states: Tensor) -> Tensor:
        """Repeat [B, T, ...] for every run and join."""
        return self.join(states.expand(self.runs, *states.shape))

    def last_columns(self, keep: int, length: int, device: torch.device) -> Tensor:
        """Indices, among the columns of the forward pass, of the last `keep` of each run's `length` columns."""
        runs = self.runs if self.packed else 1
        return torch.arange(runs * length, device=device).view(runs, length)[:, -keep:].flatten()

    @contextmanager
    def separated(self, anatomy: Anatomy) -> Iterator[None]:
        """Mask attention between packed runs inside the block.

        The model's own masks are extended, so causal and sliding windows and padding keep their meaning.
        """
        made: dict[int, Tensor] = {}  # most models pass one mask to many layers

        def replace(mask: Tensor) -> Any:
            def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                if id(mask) not in made:
                    made[id(mask)] = packed_mask(mask, self.runs)
                return args, {**kwargs, "attention_mask": made[id(mask)]}

            return hook

        masks = self.masks or {}
        layers = anatomy.layers
        with hooked(
            *(layers[i].attention.register_forward_pre_hook(replace(m), with_kwargs=True) for i, m in masks.items())
        ):
            yield


def should_pack(prefix: int, length: int, runs: int) -> bool:
    """Whether to pack `runs` runs of `length` tokens each after a prefix of `prefix` tokens.

    A packed run computes (and masks) attention to the other runs; a stacked run copies the prefix. On the CPU the two
    take equal time at about equal numbers of tokens (dev/log.md).
    """
    return prefix > (runs - 1) * length > 0


class MaskRecorder:
    """Records the masks that the model passes to its attention layers in one forward pass of stacked runs."""

    def __init__(self, anatomy: Anatomy, pairs: int) -> None:
        self._anatomy, self._pairs = anatomy, pairs
        self._masks: Masks = {}

    def hooks(self) -> list[RemovableHandle]:
        """Register hooks for one forward pass."""

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
        """The masks of all layers; None if a layer received no explicit 4-D mask (FlashAttention, causal sdpa)."""
        if len(self._masks) < self._anatomy.n_layers:
            return None
        first = {id(mask): mask[: self._pairs] for mask in self._masks.values()}  # layers that share a mask keep it
        return {index: first[id(mask)] for index, mask in self._masks.items()}


def packed_mask(mask: Tensor, runs: int) -> Tensor:
    """Extend the mask of one run, [B, h, T, C + T], to n packed runs, [B, h, n T, C + n T]."""
    length = mask.shape[-2]
    prefix, own = mask.split([mask.shape[-1] - length, length], -1)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    square = mask.new_full((*mask.shape[:2], runs, length, runs, length), hidden)
    square.diagonal(dim1=2, dim2=4).copy_(own[..., None])
    return torch.cat([prefix.repeat(1, 1, runs, 1), square.flatten(4, 5).flatten(2, 3)], -1)
