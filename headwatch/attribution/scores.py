"""The scores of a pass: per-pair arrays, from which every aggregate derives."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from headwatch.errors import UserError
from headwatch.model.display import data_frame, head_columns, heat_map, shown_name, strongest

Scores = TypeVar("Scores", bound="HeadScores | EdgeScores")


@dataclass(frozen=True)
class Checks:
    """Errors that the pass measured on itself; 0 is exact.

    Attributes:
        completeness: |sum of the `input` row - (metric(corrupted) - metric(clean))|, summed over pairs and divided by
            the sum of |metric(corrupted) - metric(clean)|: the integration error of the path.
        row_sums: largest |row sum of the edges - head score|, over the largest head score (edges only).
        stream: largest |sum of all sources' differences - difference of the final residual vector|, over the largest
            such difference: whether the sources add up to the residual stream.
    """

    completeness: float
    row_sums: float | None
    stream: float


@dataclass(frozen=True)
class Readings:
    """Metric values of the clean and corrupted runs, per pair.

    Attributes:
        metric_clean, metric_corrupted: the metric of each run, [N].
        correct: whether the clean run's most likely tokens are the clean continuation, bool [N].
    """

    metric_clean: Tensor
    metric_corrupted: Tensor
    correct: Tensor

    def pick(self, rows: Tensor) -> "Readings":
        """The readings of some pairs."""
        return Readings(self.metric_clean[rows], self.metric_corrupted[rows], self.correct[rows])


@dataclass(frozen=True, repr=False)
class HeadScores:
    """Signed scores of every attention head: the estimated change of the metric if its output were corrupted.

    Attributes:
        per_pair: [N, L, H]; float32, or float64 for a float64 model.
        input: score of the token embeddings, [N]; with an exact integral, the whole change of the metric.
        readings: the metric at both endpoints of each pair.
        families: family of each pair.
        metric, steps, alphas: settings of the pass.
        checks: errors measured by the pass.
        seconds, peak_memory_mb: cost of the pass (memory above what was in use before; None if unknown).
    """

    per_pair: Tensor
    input: Tensor
    readings: Readings
    families: tuple[str, ...]
    metric: str
    steps: int
    alphas: str
    checks: Checks
    seconds: float = 0.0
    peak_memory_mb: float | None = None

    def __repr__(self) -> str:
        n, layers, heads = self.per_pair.shape
        families = ", ".join(dict.fromkeys(self.families))
        shape = f"{n} pairs of {families}, {layers} layers x {heads} heads"
        return f"HeadScores({shape}, {self.metric}; strongest: {strongest(self.mean())})"

    def _repr_html_(self) -> str:
        n, families = len(self.families), ", ".join(dict.fromkeys(self.families))
        title = f"Mean {self.metric} score of each head, {n} pairs of {families}; strongest: {strongest(self.mean())}"
        return heat_map(self.mean(), html.escape(title))

    def to_pandas(self) -> Any:
        """A DataFrame of one row per head: head ("L17.H3"), layer, index, mean, mean_abs, standard_error.

        Raises:
            UserError: pandas is not installed.
        """
        return data_frame(head_columns(self.per_pair))

    def mean(self) -> Tensor:
        """Mean over pairs, [L, H]."""
        return self.per_pair.mean(0)

    def mean_abs(self) -> Tensor:
        """Mean of absolute values over pairs, [L, H]."""
        return self.per_pair.abs().mean(0)

    def select(self, family: str) -> "HeadScores":
        """The scores of one family."""
        rows = _rows(self, family)
        return replace(
            self,
            per_pair=self.per_pair[rows],
            input=self.input[rows],
            readings=self.readings.pick(rows),
            families=(family,) * len(rows),
        )


@dataclass(frozen=True, repr=False)
class EdgeScores:
    """Signed scores of every edge from a source's output to a target's input (EAP-IG, paper section 2).

    Attributes:
        per_pair: [N, S, R]; zero where no edge exists; float32, or float64 for a float64 model; on the CPU (in a
            training on CUDA on the device, unless the callback's subclass has its own `on_scores`).
        sources, targets: names of the rows and columns.
        is_real: which edges exist, bool [S, R].
        heads: the head scores of the same pass, computed without the edges.
    """

    per_pair: Tensor
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    is_real: Tensor
    heads: HeadScores

    def __repr__(self) -> str:
        n, sources, targets = self.per_pair.shape
        families, edges = ", ".join(dict.fromkeys(self.families)), int(self.is_real.sum())
        shape = f"{n} pairs of {families}, {sources} sources x {targets} targets, {edges:,} edges"
        return f"EdgeScores({shape}, {self.heads.metric}; strongest heads: {strongest(self.heads.mean())})"

    def to_pandas(self) -> Any:
        """A DataFrame of one row per edge, the strongest first: source, target, mean, mean_abs.

        Raises:
            UserError: pandas is not installed.
        """
        mean, mean_abs = self.mean(), self.mean_abs()
        rows, columns = self.is_real.nonzero(as_tuple=True)
        order = mean_abs[rows, columns].argsort(descending=True, stable=True)
        rows, columns = rows[order], columns[order]
        return data_frame(
            {
                "source": [shown_name(self.sources[i]) for i in rows.tolist()],
                "target": [shown_name(self.targets[i]) for i in columns.tolist()],
                "mean": mean[rows, columns].tolist(),
                "mean_abs": mean_abs[rows, columns].tolist(),
            }
        )

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each pair."""
        return self.heads.families

    @property
    def checks(self) -> Checks:
        """Errors measured by the pass."""
        return self.heads.checks

    def mean(self) -> Tensor:
        """Mean over pairs, [S, R]."""
        return self.per_pair.mean(0)

    def mean_abs(self) -> Tensor:
        """Mean of absolute values over pairs, [S, R]: the paper's aggregate."""
        return self.per_pair.abs().mean(0)

    def head_scores(self) -> HeadScores:
        """Row sums of the head sources: equal to `score_heads` on the same pairs, up to rounding."""
        n, layers, heads = self.heads.per_pair.shape
        rows = self.per_pair.sum(-1)[:, 1:].reshape(n, layers, heads + 1)[:, :, :heads]
        return replace(self.heads, per_pair=rows.contiguous())

    def select(self, family: str) -> "EdgeScores":
        """The scores of one family."""
        return replace(self, per_pair=self.per_pair[_rows(self, family)], heads=self.heads.select(family))


def _rows(scores: "HeadScores | EdgeScores", family: str) -> Tensor:
    rows = torch.tensor([i for i, name in enumerate(scores.families) if name == family], dtype=torch.long)
    if not len(rows):
        raise UserError(f"family={family!r} was not scored; the scores have {', '.join(sorted(set(scores.families)))}")
    return rows


def mean_relative_error(estimate: Tensor, truth: Tensor) -> float:
    """Sum of |estimate - truth| over the sum of |truth|; 0 if both are zero."""
    total, error = float(truth.abs().sum()), float((estimate - truth).abs().sum())
    return error / total if total else (0.0 if error == 0 else math.inf)


def heads_of(scores: "HeadScores | EdgeScores") -> HeadScores:
    """The head scores of a pass."""
    return scores.heads if isinstance(scores, EdgeScores) else scores


def merge(parts: Sequence[Scores], rows: Sequence[Sequence[int]], families: tuple[str, ...]) -> Scores:
    """Join the scores of disjoint sets of pairs of one probe set.

    Args:
        parts: scores of some of the N pairs each.
        rows: the pairs of each part.
        families: family of each of the N pairs.

    Returns:
        Scores of N pairs; 0 for pairs in no part. Diagnostics: largest errors, total seconds, largest peak memory.
    """
    heads = [heads_of(part) for part in parts]
    return replace_heads(
        combine_pairs(parts, lambda tensors: place(tensors, rows, len(families))),
        families=families,
        metric=", ".join(part.metric for part in heads),
        checks=Checks(
            completeness=max(part.checks.completeness for part in heads),
            row_sums=_largest(part.checks.row_sums for part in heads),
            stream=max(part.checks.stream for part in heads),
        ),
        seconds=sum(part.seconds for part in heads),
        peak_memory_mb=_largest(part.peak_memory_mb for part in heads),
    )


def combine_pairs(parts: Sequence[Scores], combine: Callable[[list[Tensor]], Tensor]) -> Scores:
    """Combine each per-pair tensor of several scores; everything else is taken from the first."""

    def combined(field: Callable[[Any], Tensor]) -> Tensor:
        return combine([field(part) for part in parts])

    per_pair = combined(lambda part: part.per_pair)
    if isinstance(parts[0], EdgeScores):
        heads = combine_pairs([heads_of(part) for part in parts], combine)
        return replace(parts[0], per_pair=per_pair, heads=heads)
    readings = Readings(
        combined(lambda part: part.readings.metric_clean),
        combined(lambda part: part.readings.metric_corrupted),
        combined(lambda part: part.readings.correct),
    )
    return replace(parts[0], per_pair=per_pair, input=combined(lambda part: part.input), readings=readings)


def replace_heads(scores: Scores, **changes: Any) -> Scores:
    """The scores with other values in these fields of the head scores."""
    heads = replace(heads_of(scores), **changes)
    return cast(Scores, replace(scores, heads=heads) if isinstance(scores, EdgeScores) else heads)


def place(values: Sequence[Tensor], rows: Sequence[Sequence[int]], n: int) -> Tensor:
    """Put the rows of several tensors [len(rows), ...] into one [n, ...], with zeros in rows of none."""
    out = values[0].new_zeros(n, *values[0].shape[1:])
    for own, at in zip(values, rows, strict=True):
        out[list(at)] = own
    return out


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
