"""Forward passes of the unmodified model: the shared prefix once, then any number of runs after it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, masking_utils
from transformers.cache_utils import DynamicLayer

from headwatch.attribution.batching import Batch
from headwatch.attribution.operations import PLAIN, Operations
from headwatch.attribution.run_layout import RunLayout
from headwatch.attribution.skipped_work import last_mlp_where_read
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call
from headwatch.model.hooks import overridden

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the prefix, per layer, each [B, K, C, D]."""


@contextmanager
def query_head_copies(anatomy: Anatomy) -> Iterator[None]:
    """Let attention layers take one key and one value head per query head inside the block."""
    with ExitStack() as stack:
        for layer in anatomy.layers:
            own, values = vars(layer.attention), {"num_key_value_groups": 1, "num_key_value_heads": anatomy.n_heads}
            present = {name: value for name, value in values.items() if own.get(name) is not None}
            stack.enter_context(overridden(layer.attention, **present))
        yield


@contextmanager
def repeated_heads(anatomy: Anatomy, repeated: bool) -> Iterator[None]:
    """Let attention take keys and values that the cache has repeated for all query heads, inside the block."""
    with ExitStack() as stack:
        for layer in anatomy.layers if repeated else ():
            stack.enter_context(overridden(layer.attention, num_key_value_groups=1))
        yield


@contextmanager
def masks_without_reading(padded: bool) -> Iterator[None]:
    """Let transformers make the masks of a padded batch inside the block without looking for padding on the device.

    It looks whether a mask could be left out, which waits for the device twice per forward pass. Here every call has
    padding, in its first column. Under `torch.compile` and while CUDA records a graph it makes them without looking.
    """
    with ExitStack() as stack:
        if padded and hasattr(masking_utils, "is_tracing"):
            stack.enter_context(overridden(masking_utils, is_tracing=lambda *arguments: True))
        yield


def run(
    call: Call,
    anatomy: Anatomy,
    batch: Batch,
    ids: Tensor,
    cache: Cache | None,
    layout: RunLayout,
    operations: Operations = PLAIN,
) -> Tensor:
    """Run the model on the columns after the cut, for one or several runs of the batch.

    Args:
        call: the model's forward pass.
        anatomy: the model.
        batch: the pairs.
        ids: token ids of all n runs, in this layout: [n B, T - C] or [B, n (T - C)].
        cache: keys and values of the prefix, or None without a prefix (C = 0).
        layout: the layout of the runs.
        operations: the plain operations, or the fused ones.

    Returns:
        Logits at the read positions, [n, B, P, V].
    """
    copies = len(ids) // batch.size  # of the prefix
    past = None
    repeats = cache is not None and operations.repeats_heads(anatomy)
    if cache is not None:
        past, heads = DynamicCache(), anatomy.n_heads if repeats else None
        past.layers = [PrefixLayer(keys, values, copies, operations, heads) for keys, values in cache]
    # Without padding no mask is passed, so FlashAttention and the causal kernel of sdpa can be used.
    padded = batch.padded and not layout.packed
    if cache is None and not padded and not anatomy.has_whole_layers:
        # Without a mask and a cache transformers looks for several sequences in a row, which waits for the device.
        past = DynamicCache()
        past.layers = [UnkeptLayer() for _ in anatomy.layers]
    columns = layout.last_columns(batch.keep, batch.clean.shape[1] - batch.cut, ids.device)
    masks = masks_without_reading(padded)
    with last_mlp_where_read(anatomy, columns), layout.separated(anatomy), repeated_heads(anatomy, repeats), masks:
        out = call(
            input_ids=ids,
            attention_mask=batch.mask.repeat(copies, 1) if padded else None,
            position_ids=layout.repeat(batch.positions[:, batch.cut :]),
            past_key_values=past,
            use_cache=past is not None,
            logits_to_keep=columns if layout.packed else batch.keep,
        )
    return batch.pick_reads(layout.by_run(out.logits[:, -len(columns) :]))


class EmptyLayer(DynamicLayer):
    """One layer's keys and values, kept as they are computed; transformers' own would copy them behind an empty one."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep these columns, the only ones."""
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = _compact(key_states), _compact(value_states)
        return key_states, value_states


class UnkeptLayer(DynamicLayer):
    """One layer's keys and values without a prefix, kept for no later call."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """These columns alone."""
        return key_states, value_states


def _compact(states: Tensor) -> Tensor:
    """The states; a copy where they are a part of a larger tensor, such as fused queries, keys and values."""
    return states.clone() if states.untyped_storage().nbytes() > states.nbytes else states


class PrefixLayer(DynamicLayer):
    """One layer's keys and values of the prefix, put before those of the runs in one copy.

    Args:
        keys, values: [B, K, C, D].
        copies: runs of each pair, stacked along the batch.
        operations: the plain operations, or the fused ones.
        heads: H, where keys and values are to be repeated for all query heads.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        copies: int,
        operations: Operations = PLAIN,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        self.keys, self.values, self.copies = keys, values, copies
        self.operations, self.heads = operations, heads
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix and of these columns; the prefix's own are kept for no later call."""
        assert self.keys is not None
        assert self.values is not None
        both = self.keys, self.values
        return self.operations.after_prefix(both, key_states, value_states, self.copies, self.heads)


@torch.no_grad()
def prefix_cache(call: Call, anatomy: Anatomy, batch: Batch) -> Cache | None:
    """Keys and values of the columns before the cut, which both prompts share; None without such columns."""
    if not batch.cut:
        return None
    cut = slice(0, batch.cut)
    past = DynamicCache()
    past.layers = [EmptyLayer() for _ in anatomy.layers]
    columns = torch.arange(batch.cut - 1, batch.cut, device=batch.clean.device)
    with last_mlp_where_read(anatomy, columns), masks_without_reading(batch.padded):
        call(
            input_ids=batch.clean[:, cut],
            attention_mask=batch.mask[:, cut] if batch.padded else None,
            position_ids=batch.positions[:, cut],
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
    layers: list[Any] = past.layers
    return [(layer.keys, layer.values) for layer in layers]
