"""score_heads and score_edges: one EAP-IG pass over all pairs, on the unmodified model."""

import time
from collections.abc import Collection
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from headwatch.attribution.batch_pass import BatchPass, BatchScores
from headwatch.attribution.batch_size import batch_sizes, default_budget_gb, free_bytes
from headwatch.attribution.batching import Batch, batches
from headwatch.attribution.edge_blocks import EdgeBlocks
from headwatch.attribution.fused_operations import operations_of, required_parts
from headwatch.attribution.graphs import BatchGraphs
from headwatch.attribution.metrics import Metric, logit_diff, resolve_metric
from headwatch.attribution.observer import Observer
from headwatch.attribution.path import Path
from headwatch.attribution.peak_memory import PeakMemory
from headwatch.attribution.row_sum_check import check_row_sums, row_sum_error
from headwatch.attribution.scores import Checks, EdgeScores, HeadScores, Readings, mean_relative_error
from headwatch.attribution.settings import ScoringSettings
from headwatch.attribution.stream_check import check_stream
from headwatch.attribution.tensor_pool import TensorPool
from headwatch.attribution.tolerance import limit_of
from headwatch.attribution.transfers import Downloads, on_device, wait_for
from headwatch.errors import UserError
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import callers_autocast, under_autocast
from headwatch.model.graph_state import graph_state
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet


def score_heads(
    model: nn.Module,
    probes: ProbeSet,
    metric: str | Metric = "logit_diff",
    steps: int = 5,
    alphas: str = "midpoint",
    *,
    batch_size: int | None = None,
    memory_budget_gb: float | None = None,
    kernels: str = "auto",
) -> HeadScores:
    """Score every attention head on every pair: sum over positions of delta_s . mean over alphas of dL/d(output of s).

    Args:
        model: a Hugging Face causal language model, plain or wrapped by PEFT; it is left unchanged.
        probes: the pairs.
        metric: "logit_diff", "kl", "nll", or a callable (`headwatch.attribution.Metric`).
        steps: m, the points of the path; ignored by alphas="clean" and "ends".
        alphas: "midpoint", "right" (the paper), "left", "clean" (plain attribution patching), or "ends"
            (the clean and the corrupted run; see docs/evidence/scores.md).
        batch_size: pairs per batch; None derives it from the memory budget.
        memory_budget_gb: estimated size of one batch's activations and differences, in GiB; None allows the size of the
            trainable parameters' gradients, and at least 2 GiB; on CUDA more, where memory is free (batch_size.py).
        kernels: "auto", "torch" and "triton"; see `ScoringSettings`. A single call tries no kernels under "auto".

    Returns:
        Scores of N pairs, [N, L, H].

    Raises:
        UserError: invalid input.
        UnsupportedModelError: the model is not a sum of heads and MLPs that headwatch can locate.
    """
    settings = ScoringSettings(metric, steps, alphas, False, batch_size, memory_budget_gb, kernels)
    return cast(HeadScores, score_pairs(model, probes, settings))


def score_edges(
    model: nn.Module,
    probes: ProbeSet,
    metric: str | Metric = "logit_diff",
    steps: int = 5,
    alphas: str = "midpoint",
    *,
    batch_size: int | None = None,
    memory_budget_gb: float | None = None,
    kernels: str = "auto",
) -> EdgeScores:
    """Score every edge on every pair (EAP-IG, paper section 2).

    edge(s, r) = sum over positions of delta_s . mean over alphas of dL/d(input of r). The input of r is the residual
    vector before r's norm; each query head's q, k and v, each MLP, and the logits read their own copy of it.

    Args:
        model: see `score_heads`, as for all other arguments.
        probes: the pairs.
        metric: what is differentiated.
        steps: m, the points of the path.
        alphas: the rule of the points.
        batch_size: pairs per batch.
        memory_budget_gb: estimated size of one batch.
        kernels: fused Triton kernels.

    Returns:
        Scores of N pairs, S sources and R targets, [N, S, R], with the head scores of the same pass.

    Raises:
        UserError: invalid input.
        UnsupportedModelError: the model is not a sum of heads and MLPs that headwatch can locate.
    """
    settings = ScoringSettings(metric, steps, alphas, True, batch_size, memory_budget_gb, kernels)
    return cast(EdgeScores, score_pairs(model, probes, settings))


def score_pairs(
    model: nn.Module,
    probes: ProbeSet,
    settings: ScoringSettings,
    *,
    reuse_prefix: bool = True,
    optimizer: object | None = None,
    observe: Observer | None = None,
    kernel_parts: Collection[str] = (),
    edges_on_device: bool = False,
    graphs: BatchGraphs | None = None,
) -> HeadScores | EdgeScores:
    """The pass behind `score_heads` and `score_edges`.

    Args:
        model: the model.
        probes: the pairs.
        settings: what to compute; `settings.edges` selects the kind of scores returned.
        reuse_prefix: run the tokens before a pair's first difference once, without gradients.
        optimizer: the trainer's optimizer; required only under ZeRO-3.
        observe: called with every batch's clean run.
        kernel_parts: parts of the pass that run as kernels under kernels="auto" (`fused_operations.PARTS`).
        edges_on_device: leave the edges of all pairs on the model's device instead of the CPU.
        graphs: CUDA graphs of batches, kept from pass to pass; without them every kernel is launched.
    """
    require_answers(settings.metric_name, probes)
    device = next(model.parameters()).device
    wait_for(device)  # what the training has queued is not part of the pass
    began = time.perf_counter()
    anatomy = Anatomy.of(model)
    reuse_prefix = reuse_prefix and not anatomy.has_whole_layers
    budget = settings.memory_budget_gb or default_budget_gb(model, free_bytes(device))
    with ExitStack() as stack:
        stack.enter_context(read_only_pass(model, optimizer))
        like = next(model.parameters())  # sharded models are whole only now, in the dtype of the forward
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        required = required_parts(settings.kernels, like.device, like.dtype)
        operations = operations_of(kernel_parts if settings.kernels == "auto" else required)
        scores = _Scores(anatomy, probes, settings, dtype, like.device if edges_on_device else torch.device("cpu"))
        pool, blocks = TensorPool(), EdgeBlocks(anatomy, like.device) if settings.edges else None
        size, points_at_once = batch_sizes(
            anatomy,
            probes,
            len(scores.path.points),
            settings.batch_size,
            budget,
            reuse_prefix,
            scores.metric is not logit_diff,
        )
        peak, autocast, limit = PeakMemory(like.device), under_autocast(like.device), limit_of(model)
        stack.enter_context(peak)
        call = stack.enter_context(callers_autocast(anatomy.model, like.device))
        if graphs is not None:
            graphs.begin(graph_state(model))
        of_graphs = scores.metric, tuple(scores.path.points), points_at_once, settings.edges, type(operations), autocast

        def run(batch: Batch, pool: TensorPool, first: bool = False) -> BatchScores:
            parts = anatomy, call, batch, scores.metric, scores.path, points_at_once, pool, blocks
            return BatchPass(*parts, first=first, at_peak=peak.sample, operations=operations).run()

        for number, batch in enumerate(batches(probes, size, like.device, reuse_prefix, pad=dtype != torch.float64)):
            # The first batch suffices for the stream check, which costs as much as all o_proj.
            first = number == 0
            if graphs is None or first:
                found = run(batch, pool, first)
            else:
                found = graphs.score(of_graphs, batch, run, pool, limit)
            if found.stream is not None:
                scores.stream_error = check_stream(anatomy, *found.stream)
            if first and found.edges is not None:
                check_row_sums(anatomy, found.heads, found.edges, autocast)
            scores.store(batch, found, observe)
        scores.finish()
    return scores.result(time.perf_counter() - began, peak.mib)


def require_answers(metric: str, probes: ProbeSet) -> None:
    """Raise UserError if the metric needs answers that some pairs do not have."""
    missing = {"logit_diff": probes.answers, "nll": probes.targets[:, 0]}.get(metric)
    if missing is not None and bool((missing < 0).any()):
        what = "a clean and a corrupted answer" if metric == "logit_diff" else "a clean continuation"
        rows = (missing.reshape(len(probes), -1) < 0).any(-1).nonzero()[:, 0].tolist()
        raise UserError(
            f'metric="{metric}" needs {what} for every pair, but {len(rows)} of {len(probes)} have none '
            f'(the first: pair {rows[0]}); add answers, or use metric="kl"'
        )


class _Scores:
    """The scores of a pass on the CPU, edges on a device, stored batch by batch."""

    def __init__(
        self, anatomy: Anatomy, probes: ProbeSet, settings: ScoringSettings, dtype: torch.dtype, edges_on: torch.device
    ) -> None:
        self.anatomy, self.probes, self.settings = anatomy, probes, settings
        name, self.metric = resolve_metric(settings.metric)
        self.path = Path.of(settings.alphas, settings.steps, name, self.metric)
        self.stream_error = 0.0
        self._downloads = Downloads()

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(len(probes), *shape, dtype=dtype)

        self.heads, self.input = zeros(anatomy.n_layers, anatomy.n_heads), zeros()
        self.readings = Readings(zeros(), zeros(), zeros(dtype=torch.bool))
        shape = len(probes), len(anatomy.sources), len(anatomy.targets)
        self.edges = torch.zeros(shape, dtype=dtype, device=edges_on) if settings.edges else None

    @torch.no_grad()
    def store(self, batch: Batch, found: BatchScores, observe: Observer | None) -> None:
        """Store one batch's scores and readings."""
        rows, clean, put = batch.pairs, found.clean_logits, self._downloads.add
        put(self.heads, rows, found.heads)
        put(self.input, rows, found.input)
        put(self.readings.metric_clean, rows, self.metric(clean, clean, batch.reads))
        put(self.readings.metric_corrupted, rows, self.metric(found.corrupted_logits, clean, batch.reads))
        put(self.readings.correct, rows, batch.reads.correct(clean))
        if observe is not None:
            observe(rows, clean, batch.reads)
        if self.edges is None or found.edges is None:
            return
        if self.edges.device == found.edges.device:
            self.edges[on_device(rows, self.edges.device)] = found.edges.to(self.edges.dtype)
        else:
            put(self.edges, rows, found.edges)

    def finish(self) -> None:
        """Wait for the results of all batches."""
        self._downloads.finish()

    def result(self, seconds: float, peak_memory_mb: float | None) -> HeadScores | EdgeScores:
        """The scores, with their checks."""
        gap = self.readings.metric_corrupted - self.readings.metric_clean
        heads = HeadScores(
            per_pair=self.heads,
            input=self.input,
            readings=self.readings,
            families=self.probes.families,
            metric=self.settings.metric_name,
            steps=self.path.steps,
            alphas=self.settings.alphas,
            checks=Checks(mean_relative_error(self.input, gap), self._row_sum_error(), self.stream_error),
            seconds=seconds,
            peak_memory_mb=peak_memory_mb,
        )
        if self.edges is None:
            return heads
        return EdgeScores(self.edges, self.anatomy.sources, self.anatomy.targets, self.anatomy.is_real(), heads)

    def _row_sum_error(self) -> float | None:
        return None if self.edges is None else row_sum_error(self.anatomy, self.heads, self.edges)
