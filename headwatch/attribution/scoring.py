"""score_heads and score_edges: one fused EAP-IG pass over all pairs, on the unmodified model."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwatch.attribution.batch_pass import BatchPass, BatchScores
from headwatch.attribution.batch_size import batch_sizes
from headwatch.attribution.batching import Batch, batches
from headwatch.attribution.buffers import Buffers
from headwatch.attribution.endpoints import Endpoints
from headwatch.attribution.metrics import Metric, Reads, accuracy, mean_relative_error, resolve_metric
from headwatch.attribution.path import Path
from headwatch.attribution.peak_memory import PeakMemory
from headwatch.attribution.scores import Checks, EdgeScores, HeadScores, Readings
from headwatch.errors import NonFiniteError, UnsupportedModelError, UserError
from headwatch.model.anatomy import Anatomy, compute_type
from headwatch.model.forward import callers_autocast, wide
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet

Observer = Callable[[Tensor, Tensor, Reads], None]
"""observe(pairs [B], clean logits [B, P, V], reads): sees what the model says at the read positions of a clean run."""

# How far the sources may be from adding up to the residual stream, as a share of the largest of them, beyond what the
# stream's own additions round: a part left out is far above (float64 models compute their norms in float32). Quantised
# layers may round what they are given as well (LLM.int8).
_STREAM_LIMIT = defaultdict(lambda: 0.02, {torch.float64: 1e-4, torch.int8: 0.2})
# In standard deviations of `Endpoints.rounding`; real models stay below 2 in bfloat16 and float16.
_ROUNDING_LIMIT = 4.0


def score_heads(
    model: nn.Module,
    probes: ProbeSet,
    metric: str | Metric = "logit_diff",
    steps: int = 5,
    alphas: str = "midpoint",
    *,
    batch_size: int | None = None,
    memory_budget_gb: float | None = None,
    reuse_prefix: bool = True,
    optimizer: object | None = None,
    observe: Observer | None = None,
) -> HeadScores:
    """Score every attention head on every pair: sum over positions of delta_s . mean over alphas of dL/d(output of s).

    Args:
        model: a Hugging Face causal language model, plain or wrapped by PEFT; it comes out exactly as it went in.
        probes: the pairs.
        metric: "logit_diff", "kl", "nll", or a callable (`headwatch.attribution.Metric`).
        steps: m, the points of the path; ignored by alphas="clean".
        alphas: "midpoint", "right" (the paper), "left", or "clean" (plain attribution patching).
        batch_size: pairs a batch; None chooses it by the memory budget.
        memory_budget_gb: what activations and differences of one batch may take (an estimate), in GiB; None allows what
            gradients of the trainable parameters would take, and 2 GiB at least.
        reuse_prefix: run what a pair's prompts share before their first difference once, without gradients.
        optimizer: the trainer's optimizer; needed under ZeRO-3 only.
        observe: is given every batch's clean run: which pairs [B], logits at the read positions [B, P, V], `Reads`.

    Returns:
        Scores for N pairs, [N, L, H].

    Raises:
        UserError: bad input, in one line.
        UnsupportedModelError: the model cannot be taken apart.
    """
    settings = _settings(metric, steps, alphas, probes, observe)
    parts = _run_all(model, probes, settings, False, batch_size, memory_budget_gb, reuse_prefix, optimizer)
    return parts.heads(probes, settings)


def score_edges(
    model: nn.Module,
    probes: ProbeSet,
    metric: str | Metric = "logit_diff",
    steps: int = 5,
    alphas: str = "midpoint",
    *,
    batch_size: int | None = None,
    memory_budget_gb: float | None = None,
    reuse_prefix: bool = True,
    optimizer: object | None = None,
    observe: Observer | None = None,
) -> EdgeScores:
    """Score every edge on every pair (EAP-IG, paper section 2): see `score_heads` for the arguments.

    edge(s, r) = sum over positions of delta_s . mean over alphas of dL/d(input of r), the input being the residual
    vector before r's own norm, one copy for each query head's q, k and v, each MLP, and the logits.

    Returns:
        Scores for N pairs, S sources and R targets, [N, S, R], with the head scores of the same pass beside them.
    """
    settings = _settings(metric, steps, alphas, probes, observe)
    parts = _run_all(model, probes, settings, True, batch_size, memory_budget_gb, reuse_prefix, optimizer)
    return parts.with_edges(probes, settings)


@dataclass(frozen=True)
class _Settings:
    metric_name: str
    metric: Metric
    alphas: str
    path: Path
    observe: Observer | None


def _settings(
    metric: str | Metric, steps: int, alphas: str, probes: ProbeSet, observe: Observer | None = None
) -> _Settings:
    name, function = resolve_metric(metric)
    missing = {"logit_diff": probes.answers, "nll": probes.targets[:, 0]}.get(name)
    if missing is not None and bool((missing < 0).any()):
        what = "a clean and a corrupted answer" if name == "logit_diff" else "a clean continuation"
        rows = (missing.reshape(len(probes), -1) < 0).any(-1).nonzero()[:, 0].tolist()
        raise UserError(
            f'metric="{name}" needs {what} for every pair, but {len(rows)} of {len(probes)} have none '
            f'(the first: pair {rows[0]}); give them answers, or use metric="kl"'
        )
    return _Settings(name, function, alphas, Path.of(alphas, steps, name, function), observe)


@dataclass
class _Parts:
    """The arrays of a pass, filled batch by batch; on the CPU."""

    anatomy: Anatomy
    head: Tensor
    input: Tensor
    clean: Tensor
    corrupted: Tensor
    correct: Tensor
    edge: Tensor | None
    stream_error: float = 0.0
    seconds: float = 0.0
    peak_memory_mb: float | None = None

    def heads(self, probes: ProbeSet, settings: _Settings, row_sums: float | None = None) -> HeadScores:
        return HeadScores(
            per_pair=self.head,
            input=self.input,
            readings=Readings(self.clean, self.corrupted, self.correct),
            families=probes.families,
            metric=settings.metric_name,
            steps=settings.path.steps,
            alphas=settings.alphas,
            checks=Checks(
                completeness=mean_relative_error(self.input, self.corrupted - self.clean),
                row_sums=row_sums,
                stream=self.stream_error,
            ),
            seconds=self.seconds,
            peak_memory_mb=self.peak_memory_mb,
        )

    def with_edges(self, probes: ProbeSet, settings: _Settings) -> EdgeScores:
        assert self.edge is not None
        rows = torch.cat([self.edge[:, self.anatomy.head_source(i)] for i in range(self.anatomy.n_layers)], 1).sum(-1)
        largest = float(self.head.abs().max())
        error = float((rows - self.head.flatten(1)).abs().max())
        return EdgeScores(
            per_pair=self.edge,
            sources=self.anatomy.sources,
            targets=self.anatomy.targets,
            is_real=self.anatomy.is_real(),
            heads=self.heads(probes, settings, row_sums=error / largest if largest else error),
        )


def _run_all(
    model: nn.Module,
    probes: ProbeSet,
    settings: _Settings,
    with_edges: bool,
    batch_size: int | None,
    memory_budget_gb: float | None,
    reuse_prefix: bool,
    optimizer: object | None,
) -> _Parts:
    anatomy = Anatomy.of(model)
    like = next(model.parameters())
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    n = len(probes)
    parts = _Parts(
        anatomy=anatomy,
        head=torch.zeros(n, anatomy.n_layers, anatomy.n_heads, dtype=dtype),
        input=torch.zeros(n, dtype=dtype),
        clean=torch.zeros(n, dtype=dtype),
        corrupted=torch.zeros(n, dtype=dtype),
        correct=torch.zeros(n, dtype=torch.bool),
        edge=torch.zeros(n, len(anatomy.sources), len(anatomy.targets), dtype=dtype) if with_edges else None,
    )
    began = time.perf_counter()
    size, points_at_once = batch_sizes(
        anatomy, probes, len(settings.path.points), batch_size, memory_budget_gb, reuse_prefix
    )
    buffers = Buffers() if with_edges else None
    peak = PeakMemory(like.device)
    with peak, read_only_pass(model, optimizer), callers_autocast(anatomy.model, like.device) as call:
        for number, batch in enumerate(batches(probes, size, like.device, reuse_prefix, pad=dtype != torch.float64)):
            check = not number  # it costs as much as o_proj, and what it looks for is there in every batch
            found = BatchPass(
                anatomy, call, batch, settings.metric, settings.path, points_at_once, buffers, check
            ).run()
            if check:
                _refuse_other_streams(parts, found.ends)
            _store(parts, batch, settings, found)
    parts.peak_memory_mb = peak.mib
    parts.seconds = time.perf_counter() - began
    return parts


def _refuse_other_streams(parts: _Parts, ends: Endpoints) -> None:
    """Refuse a model in which the sources do not add up to the residual stream, whatever its type says.

    Raises:
        UnsupportedModelError: they are off by far more than rounding.
        NonFiniteError: NaN or infinity in the residual stream.
    """
    with torch.no_grad():
        error, of_largest_part = _stream_error(parts.anatomy, ends)
    parts.stream_error = max(parts.stream_error, error)
    if math.isnan(of_largest_part):
        raise NonFiniteError(
            "model: NaN or infinite values in the residual stream of a probe prompt, so that no score is defined; the "
            "weights have diverged, or the dtype overflows"
        )
    packed = any(not p.is_floating_point() for p in parts.anatomy.layers[0].out.parameters())
    limit = _STREAM_LIMIT[torch.int8 if packed else next(parts.anatomy.model.parameters()).dtype]
    if of_largest_part > limit:
        raise UnsupportedModelError(
            "model: the outputs of its attention heads and MLPs do not add up to its residual stream (off by "
            f"{of_largest_part:.0%} of the largest of them), so that scores of them would mean nothing: it is of a "
            "supported type, but its layers have been changed, or something else writes into the stream"
        )


def _store(parts: _Parts, batch: Batch, settings: _Settings, found: BatchScores) -> None:
    rows, ends, dtype = batch.pairs, found.ends, parts.clean.dtype
    with torch.no_grad():
        parts.head[rows] = found.heads.cpu()
        parts.input[rows] = found.input.cpu()
        parts.clean[rows] = settings.metric(ends.clean_logits, found.reference, batch.reads).cpu().to(dtype)
        parts.corrupted[rows] = settings.metric(ends.corrupted_logits, found.reference, batch.reads).cpu().to(dtype)
        parts.correct[rows] = accuracy(ends.clean_logits, batch.reads).cpu()
        if settings.observe is not None:
            settings.observe(rows, ends.clean_logits, batch.reads)
        if found.edges is not None and parts.edge is not None:
            parts.edge[rows] = found.edges.cpu()


def _stream_error(anatomy: Anatomy, ends: Endpoints) -> tuple[float, float]:
    """Whether the differences of all sources add up to the difference of the final residual vector.

    Returns:
        The largest error over the largest entry of that difference; and the largest error beyond rounding, over the
        largest entry of any source. NaN where a value is not finite.
    """
    total = ends.input.clone()
    largest = total.abs().max()
    for z, r, mlp, layer in zip(ends.z, ends.r, ends.mlp, anatomy.layers, strict=True):
        bias = getattr(layer.out, "bias", None)  # belongs to no head
        out = wide(layer.out.forward(z.to(compute_type(layer.out)[0])))
        if bias is not None:
            out = out - bias if r is None else out + (r - 1) * wide(bias)
        out = layer.scaled(out)
        total += out + mlp
        largest = torch.stack([largest, out.abs().max(), mlp.abs().max()]).max()
    errors = (total - ends.stream).abs()
    of_stream, error = float(ends.stream.abs().max()), float(errors.max())
    rounding = 0.0 if ends.rounding is None else _ROUNDING_LIMIT * ends.rounding
    beyond = float((errors - rounding).max()) / max(of_stream, float(largest), 1e-30)
    if not math.isfinite(error) or not math.isfinite(of_stream):
        beyond = math.nan
    return (error / of_stream if of_stream else error), beyond
