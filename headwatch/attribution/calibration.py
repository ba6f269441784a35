"""The memory budget of a run, corrected by what a batch takes: one estimate cannot be right for every model."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from headwatch.attribution.batch_size import GIB, batch_sizes, pair_bytes
from headwatch.attribution.batching import batches
from headwatch.attribution.metrics import logit_diff, resolve_metric
from headwatch.attribution.path import Path
from headwatch.attribution.per_family import Metrics, rows_by_metric
from headwatch.attribution.scores import heads_of
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.model.anatomy import Anatomy
from headwatch.probes import ProbeSet

MOST_RAISED = 2.0  # a budget is raised at most by this factor: a batch of more pairs was not measured
LEAST_MEASURED_GB = 1.0  # below, workspaces of fixed size hide what a pair takes, and memory is no question
TRIES = 4  # each after the first with half the budget, because memory ran out


@dataclass(frozen=True)
class PlannedBatch:
    """One batch of a pass.

    Attributes:
        pairs: their numbers in the probe set.
        estimated_gb: memory that it takes by `pair_bytes`.
    """

    pairs: tuple[int, ...]
    estimated_gb: float


@dataclass(frozen=True)
class Budget:
    """The memory budget of a run.

    Attributes:
        gb: the budget, in GiB of the estimate.
        before_gb: the same before the correction.
        estimated_gb, measured_gb: memory of one batch; None if it was not measured.
    """

    gb: float
    before_gb: float
    estimated_gb: float | None = None
    measured_gb: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def planned_batches(model: nn.Module, probes: ProbeSet, settings: ScoringSettings) -> Iterator[PlannedBatch]:
    """The batches of `score_pairs` with the same arguments, in float32 or 16 bits."""
    anatomy, (name, metric) = Anatomy.of(model), resolve_metric(settings.metric)
    n_points = len(Path.of(settings.alphas, settings.steps, name, metric).points)
    reuse, whole_vocabulary = not anatomy.has_whole_layers, metric is not logit_diff
    limits = settings.batch_size, settings.memory_budget_gb
    size, points = batch_sizes(anatomy, probes, n_points, *limits, reuse, whole_vocabulary)
    for batch in batches(probes, size, next(model.parameters()).device, reuse):
        pairs = batch.pairs.tolist()
        need = pair_bytes(anatomy, probes.select(pairs), reuse, whole_vocabulary)(points)
        yield PlannedBatch(tuple(pairs), len(pairs) * need / GIB)


def measured_budget(
    model: nn.Module,
    probes: ProbeSet,
    metrics: Metrics,
    settings: ScoringSettings,
    optimizer: object | None = None,
) -> Budget:
    """Score the largest batch of a pass, and correct the budget of the settings by the memory that it took.

    Args:
        model: the model.
        probes: the pairs that this process scores.
        metrics: the metric of each family.
        settings: everything else, with a memory budget.
        optimizer: the trainer's; required only under ZeRO-3.

    Raises:
        torch.OutOfMemoryError: even a small budget is too large.
        Exception: the pass failed.
    """
    assert settings.memory_budget_gb is not None

    def measure(budget_gb: float) -> tuple[float, float | None]:
        found: list[tuple[float, ProbeSet, ScoringSettings]] = []
        for metric, rows in rows_by_metric(probes.families, metrics):
            own, group = replace(settings, metric=metric, memory_budget_gb=budget_gb), probes.select(rows)
            planned = planned_batches(model, group, own)
            found += [(each.estimated_gb, group.select(list(each.pairs)), own) for each in planned]
        estimated, pairs, own = max(found, key=lambda each: each[0])
        mib = heads_of(score_pairs(model, pairs, own, optimizer=optimizer)).peak_memory_mb
        return estimated, None if mib is None else mib / 1024

    return corrected(settings.memory_budget_gb, measure)


def corrected(before_gb: float, measure: Callable[[float], tuple[float, float | None]]) -> Budget:
    """The budget with which a batch takes what the estimate allows.

    Args:
        before_gb: the budget by the estimate.
        measure: scores a batch under a budget in GiB; returns its estimated and its measured memory in GiB.

    Raises:
        torch.OutOfMemoryError: `measure` ran out of memory under an eighth of the budget too.
    """
    budget_gb = before_gb
    for attempt in range(TRIES):
        try:
            estimated, measured = measure(budget_gb)
            break
        except torch.OutOfMemoryError:
            if attempt == TRIES - 1:
                raise
            budget_gb /= 2
    if not measured or measured < LEAST_MEASURED_GB:
        return Budget(budget_gb, before_gb, estimated, measured)
    # What a halved budget measured says how much memory the estimate means, not how much there is.
    factor = min(estimated / measured, MOST_RAISED if budget_gb == before_gb else 1.0)
    return Budget(budget_gb * factor, before_gb, estimated, measured)
