"""Running the unmodified model: the shared prefix once, the two endpoints, and the points between them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from headwatch.anatomy import Anatomy
from headwatch.attribution.batches import Batch

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the prefix for every layer, each [B, K, C, D]."""


@contextmanager
def hooked(*handles: RemovableHandle) -> Iterator[None]:
    """Take the hooks off on leaving."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def wide(tensor: Tensor) -> Tensor:
    """At least float32: everything is accumulated there, whatever the model's dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def run(anatomy: Anatomy, batch: Batch, ids: Tensor, cache: Cache | None, heads_per_kv: int = 1) -> Tensor:
    """Run the model on the columns after the cut, for one or several copies of the batch one after the other.

    Args:
        anatomy: the model.
        batch: the pairs.
        ids: token ids, [n B, T - C].
        cache: keys and values of the prefix, or None when there is none (C = 0).
        heads_per_kv: repeat each cached key/value head so often (for runs whose query heads have copies of their own).

    Returns:
        Logits at the read positions, [n B, P, V].
    """
    times = len(ids) // batch.size
    past = None
    if cache is not None:
        past = DynamicCache()
        for layer, (keys, values) in enumerate(cache):
            past.update(_copies(keys, times, heads_per_kv), _copies(values, times, heads_per_kv), layer)
    # FlashAttention and the causal kernel of sdpa take no mask; leaving it out where nothing is padded lets them run.
    padded = bool((batch.mask == 0).any())
    out = anatomy.model(
        input_ids=ids,
        attention_mask=batch.mask.repeat(times, 1) if padded else None,
        position_ids=batch.positions[:, batch.cut :].repeat(times, 1),
        past_key_values=past,
        use_cache=past is not None,
        logits_to_keep=batch.keep,
    )
    return batch.pick_reads(out.logits[:, -batch.keep :])


def _copies(states: Tensor, times: int, heads_per_kv: int) -> Tensor:
    return states.repeat_interleave(heads_per_kv, 1).repeat(times, 1, 1, 1)


@torch.no_grad()
def prefix_cache(anatomy: Anatomy, batch: Batch) -> Cache | None:
    """Keys and values of the columns before the cut, where the clean and the corrupted prompt are the same."""
    if not batch.cut:
        return None
    cut = slice(0, batch.cut)
    past = DynamicCache()
    anatomy.model(
        input_ids=batch.clean[:, cut],
        attention_mask=batch.mask[:, cut],
        position_ids=batch.positions[:, cut],
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    layers: list[Any] = past.layers
    return [(layer.keys, layer.values) for layer in layers]


@dataclass(frozen=True)
class Endpoints:
    """What the clean and the corrupted run leave behind; differences are corrupted - clean, on the columns after C.

    Attributes:
        clean_embedding, corrupted_embedding: output of the embedding module, [B, T - C, M].
        input: difference of what enters the first layer, [B, T - C, M].
        z: difference of the heads' outputs before o_proj, one a layer, [B, T - C, H * D].
        mlp: difference of the MLP's output, one a layer, [B, T - C, M].
        stream: difference of the final residual vector, [B, T - C, M].
        clean_logits, corrupted_logits: logits at the read positions, [B, P, V].
    """

    clean_embedding: Tensor
    corrupted_embedding: Tensor
    input: Tensor
    z: list[Tensor]
    mlp: list[Tensor]
    stream: Tensor
    clean_logits: Tensor
    corrupted_logits: Tensor


@torch.no_grad()
def endpoints(anatomy: Anatomy, batch: Batch, cache: Cache | None) -> Endpoints:
    """Run both ends of every pair, in one batch, without gradients."""
    seen: dict[Any, Tensor] = {}

    def difference(key: Any) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            clean, corrupted = args[0].chunk(2)
            seen[key] = wide(corrupted) - wide(clean)

        return hook

    def after(key: Any) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            difference(key)(module, (output[0] if isinstance(output, tuple) else output,))

        return hook

    def keep_embedding(module: Any, args: Any, output: Tensor) -> None:
        seen["embedding"] = output

    handles = [
        anatomy.embedding.register_forward_hook(keep_embedding),
        anatomy.decoder_layers[0].register_forward_pre_hook(difference("input")),
        anatomy.final_norm.register_forward_pre_hook(difference("stream")),
    ]
    for index, layer in enumerate(anatomy.layers):
        handles.append(layer.out.register_forward_pre_hook(difference(("z", index))))
        handles.append(layer.mlp.register_forward_hook(after(("mlp", index))))
    with hooked(*handles):
        logits = run(anatomy, batch, torch.cat([batch.clean, batch.corrupted])[:, batch.cut :], cache)
    clean_embedding, corrupted_embedding = seen["embedding"].chunk(2)
    clean_logits, corrupted_logits = wide(logits).chunk(2)
    return Endpoints(
        clean_embedding=clean_embedding,
        corrupted_embedding=corrupted_embedding,
        input=seen["input"],
        z=[seen["z", index] for index in range(anatomy.n_layers)],
        mlp=[seen["mlp", index] for index in range(anatomy.n_layers)],
        stream=seen["stream"],
        clean_logits=clean_logits,
        corrupted_logits=corrupted_logits,
    )


def interpolated(ends: Endpoints, alphas: list[float]) -> Tensor:
    """x(alpha) = corrupted + alpha (clean - corrupted), one alpha after the other: [m B, T - C, M], a leaf."""
    clean, corrupted = wide(ends.clean_embedding), wide(ends.corrupted_embedding)
    points = torch.cat([corrupted + alpha * (clean - corrupted) for alpha in alphas])
    return points.to(ends.clean_embedding.dtype).requires_grad_()
