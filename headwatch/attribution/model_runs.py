"""Running the unmodified model: on the columns after the cut, behind a prefix that ran once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from headwatch.model.anatomy import Anatomy
from headwatch.attribution.run_layout import Arrangement
from headwatch.attribution.batching import Batch
from headwatch.model.hooks import hooked

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the prefix for every layer, each [B, K, C, D]."""

Call = Callable[..., Any]
"""The model's forward pass, under the caller's own autocast setting: see `callers_autocast`."""


def wide(tensor: Tensor) -> Tensor:
    """At least float32: everything is accumulated there, whatever the model's dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def callers_autocast(model: nn.Module, device: torch.device) -> Iterator[Call]:
    """Inside, autocast holds for the model, as it did outside, and for nothing else: scores are summed in full.

    Compiled parts of the model run as they were written: with hooks on them they would be compiled anew for each pass,
    which takes longer than the pass and uses up the recompilations that training is allowed.
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


class OutputMatrix:
    """The model's output matrix (lm_head), asked only for the logits that somebody reads.

    Its weight is the largest of the model, and a probe reads few of its rows: at short suffixes all of them would cost
    a fifth of the pass. The module's own hooks still run, so a sharded weight is whole where it is used. Anything but
    a plain nn.Linear (an adapter, a quantised layer, a forward of somebody else's) is left alone.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        head = anatomy.model.get_output_embeddings()  # type: ignore[operator]
        self._head: Any = head if type(head) is nn.Linear and "forward" not in vars(head) else None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, all logits are there. One product for all rows: the last column of each row is no contiguous block,
        for which torch would otherwise read the weight once a row.
        """
        with self._instead(lambda x: F.linear(x.reshape(-1, x.shape[-1]), *self._weights).unflatten(0, x.shape[:-1])):
            yield

    @contextmanager
    def answers(self, answers: Tensor) -> Iterator[bool]:
        """Inside, logits are [..., 2]: of each pair's clean and corrupted answer. answers: [B, 2].

        Yields whether it is so; where the matrix has to be left alone, all logits are there.
        """

        def forward(x: Tensor) -> Tensor:
            weight, bias = self._weights
            x = x.unflatten(0, (-1, len(answers)))  # [rows a pair, B, columns, M]
            logits = x @ weight[answers].mT
            return (logits if bias is None else logits + bias[answers][:, None]).flatten(0, 1)

        with self._instead(forward):
            yield self._head is not None

    @contextmanager
    def nothing(self) -> Iterator[None]:
        """Inside, there are no logits at all: for runs that only fill a cache."""
        with self._instead(lambda x: x[..., :0]):
            yield

    @property
    def _weights(self) -> tuple[Tensor, Tensor | None]:
        return self._head.weight, self._head.bias

    @contextmanager
    def _instead(self, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
        if self._head is None:
            yield
            return
        self._head.forward = forward
        try:
            yield
        finally:
            del self._head.forward


@contextmanager
def last_mlp_where_read(anatomy: Anatomy, columns: Tensor) -> Iterator[None]:
    """Inside, the last layer's MLP runs on these columns alone, where logits are read, and adds 0 to the others.

    Nothing reads what it would add there, so no logit, gradient or score depends on it: three quarters of a layer less.
    Left alone are experts whose routers' logits the model collects, to compare them with the padding of all columns.
    """
    layer, handles = anatomy.layers[-1], []
    length = 0

    def narrow(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal length
        length = args[0].shape[1]
        return (args[0][:, columns], *args[1:])

    def widen(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        whole = states.new_zeros(states.shape[0], length, states.shape[2]).index_copy(1, columns, states)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    if not getattr(anatomy.model.config, "output_router_logits", False):
        # After every other hook that looks at what the MLP reads, and before those that look at what it adds.
        handles.append(layer.mlp_reads.register_forward_pre_hook(narrow))
        handles.append(layer.mlp_adds.register_forward_hook(widen, prepend=True))
    with hooked(*handles):
        yield


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
