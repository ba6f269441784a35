"""What a pass returns: one score for each pair first; every aggregate derives from them."""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from headwatch.errors import UserError

Scores = TypeVar("Scores", "HeadScores", "EdgeScores")


@dataclass(frozen=True)
class Checks:
    """What the pass found out about its own exactness; each is an error, 0 at best.

    Attributes:
        completeness: |sum of the `input` row - (metric(corrupted) - metric(clean))|, summed over pairs and divided by
            the sum of |metric(corrupted) - metric(clean)|: the integration error of the path.
        row_sums: largest |row sum of the edges - head score|, over the largest head score (edges only).
        stream: largest |sum of all sources' differences - difference of the final residual vector|, over the largest
            such difference: whether the model really is a sum of its sources.
    """

    completeness: float
    row_sums: float | None
    stream: float


@dataclass(frozen=True)
class Readings:
    """What the two endpoint runs say about each pair, before any attribution.

    Attributes:
        metric_clean, metric_corrupted: the metric of the two runs, [N].
        correct: whether the clean run's most likely token is the clean answer, bool [N].
    """

    metric_clean: Tensor
    metric_corrupted: Tensor
    correct: Tensor

    def pick(self, rows: Tensor) -> "Readings":
        """The same for some of the pairs."""
        return Readings(self.metric_clean[rows], self.metric_corrupted[rows], self.correct[rows])


@dataclass(frozen=True)
class HeadScores:
    """Signed scores of every attention head: what corrupting its output would do to the metric.

    Attributes:
        per_pair: [N, L, H]; float32, or float64 for a float64 model.
        input: the same sum for the token embeddings, [N]; completeness says it equals the metric's whole change.
        readings: the metric at both ends of each pair.
        families: each pair's family.
        metric, steps, alphas: how they were computed.
        checks: how exact they are.
        seconds, peak_memory_mb: what the pass cost (memory above what was held before; None where it is not known).
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

    def mean(self) -> Tensor:
        """Mean over pairs, [L, H]."""
        return self.per_pair.mean(0)

    def mean_abs(self) -> Tensor:
        """Mean of absolute values over pairs, [L, H]."""
        return self.per_pair.abs().mean(0)

    def select(self, family: str) -> "HeadScores":
        """One family's pairs."""
        rows = _rows(self, family)
        return replace(
            self,
            per_pair=self.per_pair[rows],
            input=self.input[rows],
            readings=self.readings.pick(rows),
            families=(family,) * len(rows),
        )


@dataclass(frozen=True)
class EdgeScores:
    """Signed scores of every edge from a source's output to a target's input (EAP-IG, paper section 2).

    Attributes:
        per_pair: [N, S, R]; zero where no edge exists; float32, or float64 for a float64 model.
        sources, targets: the names of rows and columns.
        is_real: which edges exist, bool [S, R].
        heads: the head scores of the same pass, computed without the edges.
    """

    per_pair: Tensor
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    is_real: Tensor
    heads: HeadScores

    @property
    def families(self) -> tuple[str, ...]:
        """Each pair's family."""
        return self.heads.families

    @property
    def checks(self) -> Checks:
        """How exact the scores are."""
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
        """One family's pairs."""
        return replace(self, per_pair=self.per_pair[_rows(self, family)], heads=self.heads.select(family))


def _rows(scores: "HeadScores | EdgeScores", family: str) -> Tensor:
    rows = torch.tensor([i for i, name in enumerate(scores.families) if name == family], dtype=torch.long)
    if not len(rows):
        raise UserError(f"family={family!r} is not among the scored ones: {', '.join(sorted(set(scores.families)))}")
    return rows
