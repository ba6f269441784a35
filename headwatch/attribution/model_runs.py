"""Forward passes of the unmodified model: the shared prefix once, then any number of runs after it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

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


def run(
    call: Call,
    anatomy: Anatomy,
    batch: Batch,
    ids: Tensor,
    cache: Cache | None,
    layout: RunLayout,
    heads_per_kv: int = 1,
) -> Tensor:
    """Run the model on the columns after the cut, for one or several runs of the batch.

    Args:
        call: the model's forward pass.
        anatomy: the model.
        batch: the pairs.
        ids: token ids of all n runs, in this layout: [n B, T - C] or [B, n (T - C)].
        cache: keys and values of the prefix, or None without a prefix (C = 0).
        layout: the layout of the runs.
        heads_per_kv: repeats of each cached key/value head (inside `query_head_copies`).

    Returns:
        Logits at the read positions, [n, B, P, V].
    """
    copies = len(ids) // batch.size  # of the prefix
    past = None
    if cache is not None:
        past = DynamicCache()
        for layer, (keys, values) in enumerate(cache):
            past.update(_copies(keys, copies, heads_per_kv), _copies(values, copies, heads_per_kv), layer)
    # Without padding no mask is passed, so FlashAttention and the causal kernel of sdpa can be used.
    padded = bool((batch.mask == 0).any()) and not layout.packed
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


def _copies(states: Tensor, times: int, heads_per_kv: int) -> Tensor:
    return states.repeat_interleave(heads_per_kv, 1).repeat(times, 1, 1, 1)


@torch.no_grad()
def prefix_cache(call: Call, anatomy: Anatomy, batch: Batch) -> Cache | None:
    """Keys and values of the columns before the cut, which both prompts share; None without such columns."""
    if not batch.cut:
        return None
    cut = slice(0, batch.cut)
    past = DynamicCache()
    with last_mlp_where_read(anatomy, torch.tensor([batch.cut - 1], device=batch.clean.device)):
        call(
            input_ids=batch.clean[:, cut],
            attention_mask=batch.mask[:, cut],
            position_ids=batch.positions[:, cut],
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
    layers: list[Any] = past.layers
    return [(layer.keys, layer.values) for layer in layers]
