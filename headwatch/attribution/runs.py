"""Running the unmodified model: the shared prefix once, the two endpoints, and the points between them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from headwatch.anatomy import Anatomy, Norm
from headwatch.attribution.batches import Batch

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the prefix for every layer, each [B, K, C, D]."""

Call = Callable[..., Any]
"""The model's forward pass, under the caller's own autocast setting: see `callers_autocast`."""


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


@contextmanager
def callers_autocast(model: nn.Module, device: torch.device) -> Iterator[Call]:
    """Inside, autocast holds for the model, as it did outside, and for nothing else: scores are summed in full.

    Compiled parts of the model run as they were written: a compiled graph would pass by the hooks put on afterwards.
    """
    kind = device.type
    outside = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def call(**inputs: Any) -> Any:
        with outside:
            return model(**inputs)

    with torch.compiler.set_stance("force_eager"), torch.autocast(kind, enabled=False):
        yield call


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


def run(call: Call, batch: Batch, ids: Tensor, cache: Cache | None, heads_per_kv: int = 1) -> Tensor:
    """Run the model on the columns after the cut, for one or several copies of the batch one after the other.

    Args:
        call: the model's forward pass.
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
    out = call(
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
def prefix_cache(call: Call, batch: Batch) -> Cache | None:
    """Keys and values of the columns before the cut, where the clean and the corrupted prompt are the same."""
    if not batch.cut:
        return None
    cut = slice(0, batch.cut)
    past = DynamicCache()
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


@dataclass(frozen=True)
class Endpoints:
    """What the clean and the corrupted run leave behind; differences are corrupted - clean, on the columns after C.

    Attributes:
        clean_embedding, corrupted_embedding: output of the embedding module, [B, T - C, M].
        input: difference of what enters the first layer, [B, T - C, M].
        z: difference of the heads' outputs before o_proj, one a layer, [B, T - C, H * D]; where there is a norm behind
            o_proj, of each run's own r z, r being that norm's 1 / rms.
        r: difference of that r, one a layer, [B, T - C, 1], or None where there is no such norm.
        mlp: difference of what the MLP adds to the residual stream, one a layer, [B, T - C, M].
        stream: difference of the final residual vector, [B, T - C, M].
        clean_logits, corrupted_logits: logits at the read positions, [B, P, V].
    """

    clean_embedding: Tensor
    corrupted_embedding: Tensor
    input: Tensor
    z: list[Tensor]
    r: list[Tensor | None]
    mlp: list[Tensor]
    stream: Tensor
    clean_logits: Tensor
    corrupted_logits: Tensor


@torch.no_grad()
def endpoints(anatomy: Anatomy, call: Call, batch: Batch, cache: Cache | None) -> Endpoints:
    """Run both ends of every pair, in one batch, without gradients."""
    seen: dict[Any, Tensor] = {}

    def keep_difference(key: Any, both: Tensor, scale: float = 1.0) -> None:
        clean, corrupted = both.chunk(2)
        seen[key] = wide(corrupted) - wide(clean)
        if scale != 1.0:
            seen[key] *= scale

    def before(key: Any) -> Any:
        return lambda module, args: keep_difference(key, args[0])

    def after(key: Any, scale: float) -> Any:
        return lambda module, args, output: keep_difference(key, first_output(output), scale)

    def keep(key: Any) -> Any:
        return lambda module, args: seen.__setitem__(key, args[0])

    def times_r(index: int, norm: Norm) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            r = norm.inverse_scale(wide(args[0]))
            keep_difference(("r", index), r)
            keep_difference(("z", index), wide(seen.pop(("both z", index))) * r)

        return hook

    def keep_embedding(module: Any, args: Any, output: Tensor) -> None:
        seen["embedding"] = output

    handles = [
        anatomy.embedding.register_forward_hook(keep_embedding),
        anatomy.decoder_layers[0].register_forward_pre_hook(before("input")),
        anatomy.final_norm.register_forward_pre_hook(before("stream")),
    ]
    for index, layer in enumerate(anatomy.layers):
        norm = layer.attn_post_norm
        if norm is None:
            handles.append(layer.out.register_forward_pre_hook(before(("z", index))))
        else:
            handles.append(layer.out.register_forward_pre_hook(keep(("both z", index))))
            handles.append(norm.module.register_forward_pre_hook(times_r(index, norm)))
        handles.append(layer.mlp_adds.register_forward_hook(after(("mlp", index), layer.multiplier)))
    with hooked(*handles):
        logits = run(call, batch, torch.cat([batch.clean, batch.corrupted])[:, batch.cut :], cache)
    clean_embedding, corrupted_embedding = seen["embedding"].chunk(2)
    clean_logits, corrupted_logits = wide(logits).chunk(2)
    return Endpoints(
        clean_embedding=clean_embedding,
        corrupted_embedding=corrupted_embedding,
        input=seen["input"],
        z=[seen["z", index] for index in range(anatomy.n_layers)],
        r=[seen.get(("r", index)) for index in range(anatomy.n_layers)],
        mlp=[seen["mlp", index] for index in range(anatomy.n_layers)],
        stream=seen["stream"],
        clean_logits=clean_logits,
        corrupted_logits=corrupted_logits,
    )


def first_output(output: Any) -> Tensor:
    """A module's output, or the first of several (expert blocks may return what their router said beside it)."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def interpolated(ends: Endpoints, alphas: list[float]) -> Tensor:
    """x(alpha) = corrupted + alpha (clean - corrupted), one alpha after the other: [m B, T - C, M], a leaf."""
    clean, corrupted = wide(ends.clean_embedding), wide(ends.corrupted_embedding)
    points = torch.cat([corrupted + alpha * (clean - corrupted) for alpha in alphas])
    return points.to(ends.clean_embedding.dtype).requires_grad_()
