"""Run a model in which every edge outside a circuit carries the corrupted prompt's output.

On the clean prompt, the input of target r becomes

    x_r - sum over edges (s, r) outside the circuit of (out_s - out_s'),

where x_r is the residual vector that r reads, out_s what source s adds to it in this run (its own inputs may be
corrupted too), and out_s' what s adds in the corrupted run. Every query head's q, k and v read their own copy, with
grouped queries too. Before the first difference of a pair all runs are equal, so the shared prefix runs once.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headwatch.attribution.batch_size import GIB, default_budget_gb
from headwatch.attribution.batching import Batch, batches, spans
from headwatch.attribution.endpoints import first_output
from headwatch.attribution.metrics import Metric, resolve_metric
from headwatch.attribution.model_runs import Cache, prefix_cache, query_head_copies, run
from headwatch.attribution.run_layout import RunLayout
from headwatch.attribution.scores import Readings
from headwatch.attribution.scoring import require_answers
from headwatch.attribution.skipped_work import OutputMatrix
from headwatch.errors import UnsupportedModelError
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call, callers_autocast
from headwatch.model.hooks import hooked
from headwatch.model.linear_map import linear_map
from headwatch.model.parts import KINDS, Kind, Layer, Projection
from headwatch.model.precision import at_least_float32
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet


def run_circuits(
    model: nn.Module,
    probes: ProbeSet,
    kept: Tensor,
    metric: str | Metric = "logit_diff",
    *,
    memory_budget_gb: float | None = None,
) -> tuple[Tensor, Readings]:
    """The metric of several circuits on every pair.

    Args:
        model: a Hugging Face causal language model, plain or wrapped by PEFT; it is left unchanged.
        probes: the pairs.
        kept: edges of each of C circuits, bool [C, S, R].
        metric: "logit_diff", "kl", "nll", or a callable.
        memory_budget_gb: estimated size of one batch's differences, in GiB; None: see `score_heads`.

    Returns:
        The metric of each circuit, [C, N], and of the clean and the corrupted runs.

    Raises:
        UserError: invalid input.
        UnsupportedModelError: the model is not supported.
    """
    anatomy, (name, function) = Anatomy.of(model), resolve_metric(metric)
    require_answers(name, probes)
    _refuse_composite_nodes(anatomy)
    like = next(model.parameters())
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    values = torch.zeros(len(kept), len(probes), dtype=dtype)
    readings = Readings(*(torch.zeros(len(probes), dtype=kind) for kind in (dtype, dtype, torch.bool)))
    pairs, runs = _sizes(anatomy, probes, len(kept), memory_budget_gb)
    outside = anatomy.is_real() & ~kept.bool()
    with read_only_pass(model), torch.no_grad(), callers_autocast(anatomy.model, like.device) as call:
        for batch in batches(probes, pairs, like.device, pad=dtype != torch.float64):
            ablation = EdgeAblation(anatomy, call, batch, function)
            clean, corrupted = ablation.run_endpoints()
            readings.metric_clean[batch.pairs] = clean.cpu().to(dtype)
            readings.metric_corrupted[batch.pairs] = corrupted.cpu().to(dtype)
            readings.correct[batch.pairs] = batch.reads.correct(ablation.clean_logits).cpu()
            for first in range(0, len(kept), runs):
                found = ablation.run(outside[first : first + runs].to(like.device))
                values[first : first + runs, batch.pairs] = found.cpu().to(dtype)
    return values, readings


class EdgeAblation:
    """One batch of pairs: the endpoints, then any number of circuits.

    Args:
        anatomy: the model.
        call: its forward pass.
        batch: the pairs.
        metric: what is read.
    """

    def __init__(self, anatomy: Anatomy, call: Call, batch: Batch, metric: Metric) -> None:
        self.anatomy, self.call, self.batch, self.metric = anatomy, call, batch, metric
        self.output = OutputMatrix(anatomy)
        self.cache: Cache | None = None
        self.clean_logits = torch.empty(0)
        self._corrupted: dict[Any, Tensor] = {}  # what each source adds in the corrupted run, in factors

    def run_endpoints(self) -> tuple[Tensor, Tensor]:
        """Run the prefix and both endpoints; returns the metric of the clean and of the corrupted runs, [B] each."""
        with self.output.nothing():
            self.cache = prefix_cache(self.call, self.anatomy, self.batch)
        layout, sides = RunLayout(self.batch.size, 2), (self.batch.clean, self.batch.corrupted)
        ids = layout.join(torch.stack([side[:, self.batch.cut :] for side in sides]))

        def keep(key: Any, states: Tensor) -> None:
            self._corrupted[key] = at_least_float32(layout.by_run(states)[1])

        with hooked(*source_hooks(self.anatomy, keep)), self.output.whole():
            logits = run(self.call, self.anatomy, self.batch, ids, self.cache, layout)
        clean, corrupted = (at_least_float32(own) for own in logits)
        self.clean_logits = clean
        reads = self.batch.reads
        return self.metric(clean, clean, reads), self.metric(corrupted, clean, reads)

    def run(self, outside: Tensor) -> Tensor:
        """The metric of n circuits, [n, B]; outside: the edges to corrupt, bool [n, S, R]."""
        n = len(outside)
        layout = RunLayout(self.batch.size, n)
        ids = layout.repeat(self.batch.clean[:, self.batch.cut :])
        corrupted = _CorruptedEdges(self.anatomy, outside, self._corrupted)
        with query_head_copies(self.anatomy), hooked(*corrupted.hooks()), self.output.whole():
            logits = run(self.call, self.anatomy, self.batch, ids, self.cache, layout)
        clean, reads = self.clean_logits.repeat(n, 1, 1), self.batch.reads.repeat(n)
        return self.metric(at_least_float32(logits.flatten(0, 1)), clean, reads).unflatten(0, (n, -1))


class _CorruptedEdges:
    """Hooks for one forward pass of n stacked runs of B pairs, in which the edges outside n circuits are corrupted."""

    def __init__(self, anatomy: Anatomy, outside: Tensor, corrupted: dict[Any, Tensor]) -> None:
        self.anatomy, self.corrupted, self.n = anatomy, corrupted, len(outside)
        like = corrupted["input"]
        self.outside = outside.to(like.dtype)
        pairs, tokens, width = like.shape
        # What each source adds in this run minus what it adds in the corrupted run.
        self.differences = like.new_zeros(self.n, pairs * tokens, len(anatomy.sources), width)
        self.copies: dict[int, Tensor] = {}  # of the layer that runs, [n B, T, 3 H, M]
        self.residual: dict[int, Tensor] = {}  # the input of the layer that runs, [n B, T, M]

    def hooks(self) -> list[RemovableHandle]:
        """Register the hooks of all sources and targets."""
        handles = source_hooks(self.anatomy, self._keep)
        for index, layer in enumerate(self.anatomy.layers):
            handles.append(self.anatomy.decoder_layers[index].register_forward_pre_hook(self._copy(index)))
            for projection in layer.projections:
                handles.append(projection.last.register_forward_hook(self._by_head(index, projection)))
            target, heads = self.anatomy.mlp_target(index), self.anatomy.head_source(index)
            stop = heads.start if layer.parallel else heads.stop
            shared = index if layer.shared_norm else None
            handles.append(layer.mlp_reads.register_forward_pre_hook(self._one_target(target, stop, shared)))
        last = len(self.anatomy.targets) - 1
        handles.append(self.anatomy.final_norm.register_forward_pre_hook(self._one_target(last, None)))
        return handles

    def _keep(self, key: Any, states: Tensor) -> None:
        """Add a source's difference, given what `source_hooks` reads."""
        states = at_least_float32(states)
        difference = states - self.corrupted[key].repeat(self.n, 1, 1)
        kind, index = key if isinstance(key, tuple) else (key, 0)
        if kind == "z":
            rows: Any = self.anatomy.head_source(index)
            difference = by_head_output(self.anatomy.layers[index], difference, self.anatomy.n_heads)
        else:
            rows = slice(0, 1) if kind == "input" else slice(self.anatomy.mlp_source(index), None)
            rows = slice(rows.start, rows.start + 1)
            difference = difference[..., None, :]
        self.differences[:, :, rows] = difference.reshape(self.n, -1, *difference.shape[2:])

    def _corrupt(self, targets: slice, stop: int | None) -> Tensor:
        """Sum over the edges outside the circuit of their sources' differences, [n B, T, R', M]."""
        weights = self.outside[:, :stop, targets].mT[:, None]  # [n, 1, R', S']
        summed = weights @ self.differences[:, :, :stop]
        pairs, tokens, _ = self.corrupted["input"].shape
        return summed.reshape(self.n * pairs, tokens, *summed.shape[2:])

    def _copy(self, index: int) -> Any:
        targets, stop = self.anatomy.attention_targets(index), self.anatomy.head_source(index).start

        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            self.residual = {index: x}
            self.copies = {index: (at_least_float32(x)[..., None, :] - self._corrupt(targets, stop)).to(x.dtype)}

        return hook

    def _one_target(self, target: int, stop: int | None, shared: int | None = None) -> Any:
        """Corrupt the input of an MLP or of the logits; `shared`: a layer whose MLP reads the norm of its attention."""
        norm = None if shared is None else self.anatomy.layers[shared].attn_norm

        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0] if shared is None else self.residual[shared]
            corrupted = self._corrupt(slice(target, target + 1), stop)[..., 0, :]
            read = (at_least_float32(x) - corrupted).to(x.dtype)
            return (read if norm is None else norm.module.forward(read), *args[1:])

        return hook

    def _by_head(self, index: int, projection: Projection) -> Any:
        """Replace a projection's output: every head's from its own copy, in the order of `query_head_copies`."""
        norm = self.anatomy.layers[index].attn_norm

        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            copies = self.copies[index]
            read = copies if norm is None else norm.module.forward(copies)  # .forward does not run these hooks
            read = read.unflatten(2, (self.anatomy.n_heads, len(KINDS)))  # [n B, T, H, 3, M]
            states: dict[Kind, Tensor] = {}
            for kind in projection.kinds:
                states[kind] = _projected(self.anatomy, projection, kind, read[:, :, :, KINDS.index(kind)])
            return projection.join(states).to(output.dtype)

        return hook


def _projected(anatomy: Anatomy, projection: Projection, kind: Kind, read: Tensor) -> Tensor:
    """Every query head's query, key or value from its own input: [..., H, M] -> [..., H, D]."""
    group = 1 if kind == "q" else anatomy.heads_per_kv
    if projection.norm is not None:  # over the whole width, so every copy needs the whole projection
        whole = projection.norm.module.forward(projection.module.forward(read))[..., projection.rows(kind)]
        by_head = whole.unflatten(-1, (-1, anatomy.head_dim))  # [..., H, heads, D]
        own = torch.arange(anatomy.n_heads, device=read.device)
        return by_head[..., own, own // group, :]
    matrix, bias = linear_map(projection.module, anatomy.d_model)
    rows = projection.rows(kind)
    weights = matrix[rows].unflatten(0, (-1, anatomy.head_dim)).repeat_interleave(group, 0)  # [H, D, M]
    offsets = bias[rows].unflatten(0, (-1, anatomy.head_dim)).repeat_interleave(group, 0)
    return torch.einsum("...hm,hdm->...hd", at_least_float32(read), weights) + offsets


def _refuse_composite_nodes(anatomy: Anatomy) -> None:
    """Refuse hybrids and layers with several MLPs, whose nodes this module does not separate from the stream yet."""
    if anatomy.has_whole_layers or any(len(layer.mlp_adds) > 1 for layer in anatomy.layers):
        raise UnsupportedModelError(
            "model: circuits cannot be run alone in models with layers without attention heads, or with several MLPs "
            "per layer; scores and patch_heads support them"
        )


def source_hooks(anatomy: Anatomy, keep: Any) -> list[RemovableHandle]:
    """Hooks that call `keep(key, states)` for every source of a forward pass.

    Keys and states: "input", the first layer's input [B, T, M]; ("z", layer), the heads' outputs before o_proj
    [B, T, H D], times 1 / rms of the norm after o_proj if there is one; ("m", layer), what the MLP adds [B, T, M].
    """

    def z_hooks(index: int, layer: Layer) -> list[RemovableHandle]:
        norm = layer.attn_post_norm
        if norm is None:
            return [layer.out.register_forward_pre_hook(lambda module, args: keep(("z", index), args[0]))]
        kept: list[Tensor] = []

        def multiply(module: Any, args: tuple[Tensor, ...]) -> None:
            keep(("z", index), at_least_float32(kept.pop()) * norm.inverse_scale(at_least_float32(args[0])))

        return [
            layer.out.register_forward_pre_hook(lambda module, args: kept.append(args[0])),
            norm.module.register_forward_pre_hook(multiply),
        ]

    def at_mlp(index: int, layer: Layer) -> Any:
        return lambda module, args, output: keep(("m", index), first_output(output, args) * layer.multiplier)

    handles = [anatomy.decoder_layers[0].register_forward_pre_hook(lambda module, args: keep("input", args[0]))]
    for index, layer in enumerate(anatomy.layers):
        handles += z_hooks(index, layer)
        handles.append(layer.mlp_adds[0].register_forward_hook(at_mlp(index, layer)))
    return handles


def by_head_output(layer: Layer, z: Tensor, n_heads: int) -> Tensor:
    """What every head adds to the stream: z [..., H D] -> [..., H, M]."""
    weight, _ = linear_map(layer.out, z.shape[-1])
    by_head = weight.unflatten(-1, (n_heads, -1))  # [M, H, D]
    return layer.scaled(torch.einsum("...hd,mhd->...hm", z.unflatten(-1, (n_heads, -1)), by_head))


def _sizes(anatomy: Anatomy, probes: ProbeSet, circuits: int, budget: float | None) -> tuple[int, int]:
    """Pairs per batch and circuits per forward pass: per token, the differences S M and the copies of a layer 9 H M."""
    every: Iterable[Any] = spans(probes)
    tokens = max(span.suffix for span in every)
    itemsize = 8 if next(anatomy.model.parameters()).dtype == torch.float64 else 4
    per_run = tokens * (len(anatomy.sources) + 9 * anatomy.n_heads) * anatomy.d_model * itemsize
    fitting = max(1, int((budget or default_budget_gb(anatomy.model)) * GIB // per_run))
    runs = max(1, min(circuits, fitting // max(1, min(len(probes), 8))))
    return max(1, min(len(probes), fitting // runs)), runs
