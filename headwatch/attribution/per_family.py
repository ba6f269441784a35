"""Families that are read by different metrics: one pass for each metric, and the scores joined again pair by pair."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from headwatch.attribution.metrics import Metric, Reads, mean_relative_error, resolve_metric
from headwatch.attribution.scores import Checks, EdgeScores, HeadScores, Readings
from headwatch.attribution.scoring import Observer
from headwatch.probes import ProbeSet

Scores = TypeVar("Scores", HeadScores, EdgeScores)
Metrics = Mapping[str, str | Metric]
"""Family -> the metric it is read by."""


def described(metrics: Metrics) -> str | dict[str, str]:
    """The metrics' names: one where all families share it, else by family."""
    names = {family: resolve_metric(metric)[0] for family, metric in metrics.items()}
    return next(iter(names.values())) if len(set(names.values())) == 1 else names


def rows_by_metric(families: Sequence[str], metrics: Metrics) -> list[tuple[str | Metric, list[int]]]:
    """(metric, which pairs are read by it), in order of first appearance."""
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
    """The integration error, as `Checks` has it; of several metrics, whose units differ, the worst one's."""
    change = readings.metric_corrupted - readings.metric_clean
    return max(mean_relative_error(at_input[rows], change[rows]) for _, rows in rows_by_metric(families, metrics))


def score_by_metric(
    score: Callable[..., Scores],
    model: nn.Module,
    probes: ProbeSet,
    metrics: Metrics,
    *,
    observe: Observer | None = None,
    **options: Any,
) -> Scores:
    """`score(model, probes, metric=..., ...)` of each family's pairs by its own metric, as one set of scores.

    `observe` is told the pairs by their numbers in the whole set. With one metric it is that one pass and nothing else.
    """
    groups = rows_by_metric(probes.families, metrics)
    if len(groups) == 1:
        return score(model, probes, metric=groups[0][0], observe=observe, **options)
    whole: Scores | None = None
    for metric, rows in groups:
        part = score(model, probes.select(rows), metric=metric, observe=_renumbered(observe, rows), **options)
        whole = _empty(part, probes) if whole is None else whole
        _fill(whole, part, rows)
        whole = _told(whole, part)
    assert whole is not None
    return whole


def _renumbered(observe: Observer | None, rows: Sequence[int]) -> Observer | None:
    if observe is None:
        return None
    numbers = torch.tensor(rows)

    def told(pairs: Tensor, logits: Tensor, reads: Reads) -> None:
        observe(numbers[pairs.cpu()], logits, reads)

    return told


def _empty(part: Scores, probes: ProbeSet) -> Scores:
    """Scores of the whole set, to be filled in, with what the first part says of itself."""

    def room(values: Tensor) -> Tensor:
        return torch.zeros(len(probes), *values.shape[1:], dtype=values.dtype)

    heads = part.heads if isinstance(part, EdgeScores) else part
    found = heads.readings
    whole = replace(
        heads,
        per_pair=room(heads.per_pair),
        input=room(heads.input),
        readings=Readings(room(found.metric_clean), room(found.metric_corrupted), room(found.correct)),
        families=probes.families,
        metric="",
        checks=Checks(0.0, None, 0.0),
        seconds=0.0,
        peak_memory_mb=None,
    )
    if isinstance(part, EdgeScores):
        return replace(part, per_pair=room(part.per_pair), heads=whole)
    return whole


def _fill(whole: Scores, part: Scores, rows: Sequence[int]) -> None:
    if isinstance(whole, EdgeScores) and isinstance(part, EdgeScores):
        whole.per_pair[rows] = part.per_pair
        _fill(whole.heads, part.heads, rows)
    elif isinstance(whole, HeadScores) and isinstance(part, HeadScores):
        whole.per_pair[rows] = part.per_pair
        whole.input[rows] = part.input
        for name in ("metric_clean", "metric_corrupted", "correct"):
            getattr(whole.readings, name)[rows] = getattr(part.readings, name)


def _told(whole: Scores, part: Scores) -> Scores:
    """What the parts say of themselves: the worst error, all seconds, the highest peak."""
    if isinstance(whole, EdgeScores) and isinstance(part, EdgeScores):
        return replace(whole, heads=_told(whole.heads, part.heads))
    one, other = whole.checks, part.checks
    peaks = [p for p in (whole.peak_memory_mb, part.peak_memory_mb) if p is not None]
    sums = [s for s in (one.row_sums, other.row_sums) if s is not None]
    return replace(
        whole,
        metric=", ".join(name for name in (whole.metric, part.metric) if name),
        checks=Checks(
            completeness=max(one.completeness, other.completeness),
            row_sums=max(sums) if sums else None,
            stream=max(one.stream, other.stream),
        ),
        seconds=whole.seconds + part.seconds,
        peak_memory_mb=max(peaks) if peaks else None,
    )
