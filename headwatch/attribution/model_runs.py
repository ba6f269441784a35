"""Forward passes of the unmodified model: the shared prefix once, then any number of runs after it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from headwatch.attribution.batching import Batch
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


def run(call: Call, anatomy: Anatomy, batch: Batch, ids: Tensor, cache: Cache | None, layout: RunLayout) -> Tensor:
    """Run the model on the columns after the cut, for one or several runs of the batch.

    Args:
        call: the model's forward pass.
        anatomy: the model.
        batch: the pairs.
        ids: token ids of all n runs, in this layout: [n B, T - C] or [B, n (T - C)].
        cache: keys and values of the prefix, or None without a prefix (C = 0).
        layout: the layout of the runs.

    Returns:
        Logits at the read positions, [n, B, P, V].
    """
    copies = len(ids) // batch.size  # of the prefix
    past = None
    if cache is not None:
        past = DynamicCache()
        past.layers = [PrefixLayer(keys, values, copies) for keys, values in cache]
    # Without padding no mask is passed, so FlashAttention and the causal kernel of sdpa can be used.
    padded = batch.padded and not layout.packed
    columns = layout.last_columns(batch.keep, batch.clean.shape[1] - batch.cut, ids.device)
    with last_mlp_where_read(anatomy, columns), layout.separated(anatomy):
        out = call(
            input_ids=ids,
            attention_mask=batch.mask.repeat(copies, 1) if padded else None,
            position_ids=layout.repeat(batch.positions[:, batch.cut :]),
            past_key_values=past,
            use_cache=past is not None,
            logits_to_keep=columns if layout.packed else batch.keep,
        )
    return batch.pick_reads(layout.by_run(out.logits[:, -len(columns) :]))


class PrefixLayer(DynamicLayer):
    """One layer's keys and values of the prefix, put before those of the runs in one copy.

    Args:
        keys, values: [B, K, C, D].
        copies: runs of each pair, stacked along the batch.
    """

    def __init__(self, keys: Tensor, values: Tensor, copies: int) -> None:
        super().__init__()
        self.keys, self.values, self.copies = keys, values, copies
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix and of these columns; the prefix's own are kept for no later call."""
        keys = _AfterPrefix.apply(self.keys, key_states, self.copies)
        return keys, _AfterPrefix.apply(self.values, value_states, self.copies)


class _AfterPrefix(torch.autograd.Function):
    """[B, K, C, D] and [n B, K g, T, D] -> [n B, K g, C + T, D]: one write, where `cat` would need copies to read."""

    @staticmethod
    def forward(ctx: Any, prefix: Tensor, states: Tensor, copies: int) -> Tensor:
        pairs, kv_heads, ctx.length, width = prefix.shape
        rows, heads, length, _ = states.shape
        out = states.new_empty(rows, heads, ctx.length + length, width)
        out[:, :, ctx.length :] = states
        before = out[:, :, : ctx.length].unflatten(1, (kv_heads, -1)).unflatten(0, (copies, pairs))
        before.copy_(prefix[None, :, :, None])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, grads[0][:, :, ctx.length :], None


@torch.no_grad()
def prefix_cache(call: Call, anatomy: Anatomy, batch: Batch) -> Cache | None:
    """Keys and values of the columns before the cut, which both prompts share; None without such columns."""
    if not batch.cut:
        return None
    cut = slice(0, batch.cut)
    past = DynamicCache()
    with last_mlp_where_read(anatomy, torch.arange(batch.cut - 1, batch.cut, device=batch.clean.device)):
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
