"""Running the unmodified model: on the columns after the cut, behind a prefix that ran once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from headwatch.attribution.batching import Batch
from headwatch.attribution.run_layout import Arrangement
from headwatch.attribution.skipped_work import last_mlp_where_read
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the prefix for every layer, each [B, K, C, D]."""


@contextmanager
def query_head_copies(anatomy: Anatomy) -> Iterator[None]:
    """Inside, an attention layer takes as many key and value heads as it has query heads."""
    wanted = {"num_key_value_groups": 1, "num_key_value_heads": anatomy.n_heads}
    changed: list[tuple[Any, str, Any]] = []
    try:
        for layer in anatomy.layers:
            for name, value in wanted.items():
                before = vars(layer.attention).get(name)
                if before is not None and before != value:
                    changed.append((layer.attention, name, before))
                    setattr(layer.attention, name, value)
        yield
    finally:
        for module, name, before in changed:
            setattr(module, name, before)


def run(
    call: Call,
    anatomy: Anatomy,
    batch: Batch,
    ids: Tensor,
    cache: Cache | None,
    arrangement: Arrangement,
    heads_per_kv: int = 1,
) -> Tensor:
    """Run the model on the columns after the cut, for one or several runs of the batch.

    Args:
        call: the model's forward pass.
        anatomy: the model.
        batch: the pairs.
        ids: token ids of all n runs, as they are arranged: [n B, T - C] or [B, n (T - C)].
        cache: keys and values of the prefix, or None when there is none (C = 0).
        arrangement: how the runs lie.
        heads_per_kv: repeat each cached key/value head so often (for runs whose query heads have copies of their own).

    Returns:
        Logits at the read positions, [n, B, P, V], however the runs lie.
    """
    copies = len(ids) // batch.size  # of the prefix
    past = None
    if cache is not None:
        past = DynamicCache()
        for layer, (keys, values) in enumerate(cache):
            past.update(_copies(keys, copies, heads_per_kv), _copies(values, copies, heads_per_kv), layer)
    # FlashAttention and the causal kernel of sdpa take no mask; leaving it out where nothing is padded lets them run.
    padded = bool((batch.mask == 0).any()) and not arrangement.beside
    columns = arrangement.last_columns(batch.keep, batch.clean.shape[1] - batch.cut, ids.device)
    with last_mlp_where_read(anatomy, columns), arrangement.apart(anatomy):
        out = call(
            input_ids=ids,
            attention_mask=batch.mask.repeat(copies, 1) if padded else None,
            position_ids=arrangement.repeat(batch.positions[:, batch.cut :]),
            past_key_values=past,
            use_cache=past is not None,
            logits_to_keep=columns if arrangement.beside else batch.keep,
        )
    return batch.pick_reads(arrangement.by_run(out.logits[:, -len(columns) :]))


def _copies(states: Tensor, times: int, heads_per_kv: int) -> Tensor:
    return states.repeat_interleave(heads_per_kv, 1).repeat(times, 1, 1, 1)


@torch.no_grad()
def prefix_cache(call: Call, anatomy: Anatomy, batch: Batch) -> Cache | None:
    """Keys and values of the columns before the cut, where the clean and the corrupted prompt are the same."""
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
