"""Families with different metrics: one pass per metric, and the scores merged."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from headwatch.attribution.graphs import BatchGraphs
from headwatch.attribution.metrics import Metric, resolve_metric
from headwatch.attribution.observer import Observer, renumbered
from headwatch.attribution.scores import EdgeScores, HeadScores, Readings, mean_relative_error, merge
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.probes import ProbeSet

Metrics = Mapping[str, str | Metric]
"""Family -> its metric."""


def described(metrics: Metrics) -> str | dict[str, str]:
    """The metrics' names: one if all families share it, else by family."""
    names = {family: resolve_metric(metric)[0] for family, metric in metrics.items()}
    return next(iter(names.values())) if len(set(names.values())) == 1 else names


def rows_by_metric(families: Sequence[str], metrics: Metrics) -> list[tuple[str | Metric, list[int]]]:
    """(metric, its pairs), in order of first appearance."""
    groups: list[tuple[str | Metric, list[int]]] = []
    for row, family in enumerate(families):
        metric = metrics[family]
        rows = next((rows for known, rows in groups if known == metric), None)
        if rows is None:
            groups.append((metric, [row]))
        else:
            rows.append(row)
    return groups


def completeness(at_input: Tensor, readings: Readings, families: Sequence[str], metrics: Metrics) -> float:
    """`Checks.completeness`; with several metrics, whose units differ, the largest of their errors."""
    change = readings.metric_corrupted - readings.metric_clean
    return max(mean_relative_error(at_input[rows], change[rows]) for _, rows in rows_by_metric(families, metrics))


def score_by_metric(
    model: nn.Module,
    probes: ProbeSet,
    metrics: Metrics,
    settings: ScoringSettings,
    *,
    optimizer: object | None = None,
    observe: Observer | None = None,
    kernel_parts: Collection[str] = (),
    edges_on_device: bool = False,
    graphs: BatchGraphs | None = None,
) -> HeadScores | EdgeScores:
    """Score the pairs of each family by its own metric, in one pass per metric.

    Args:
        model: see `score_pairs`, as for `optimizer` and `observe`.
        probes: the pairs.
        metrics: the metric of each family.
        settings: everything else; its own metric is not used.
        optimizer: the trainer's optimizer.
        observe: receives pairs by their numbers in `probes`.
        kernel_parts, edges_on_device, graphs: see `score_pairs`.
    """
    groups = rows_by_metric(probes.families, metrics)
    parts = [
        score_pairs(
            model,
            probes if len(groups) == 1 else probes.select(rows),
            replace(settings, metric=metric),
            optimizer=optimizer,
            observe=observe if len(groups) == 1 else renumbered(observe, rows),
            kernel_parts=kernel_parts,
            edges_on_device=edges_on_device,
            graphs=graphs,
        )
        for metric, rows in groups
    ]
    return parts[0] if len(parts) == 1 else merge(parts, [rows for _, rows in groups], probes.families)
