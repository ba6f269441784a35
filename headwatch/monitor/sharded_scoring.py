"""Pairs of a probe shared over the ranks, and their scores put together again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.per_family import Metrics, completeness
from headwatch.attribution.scores import Checks, Readings
from headwatch.monitor.distributed import _reduced, is_sharded, world
from headwatch.probes import ProbeSet

Scores = TypeVar("Scores", HeadScores, EdgeScores)


@dataclass(frozen=True)
class Share:
    """The pairs this process scores: r, r + W, ... of W processes; all, where the model is sharded or pairs are few.

    Where a forward pass is no collective (DDP), processes may well run different numbers of batches.

    Attributes:
        rows: which of the n pairs.
        split: whether other processes score the others.
    """

    rows: tuple[int, ...]
    n: int
    split: bool

    @classmethod
    def of(cls, n_pairs: int, model: nn.Module) -> "Share":
        """This process's share."""
        rank, size = world()
        split = 1 < size <= n_pairs and not is_sharded(model)
        return cls(tuple(range(rank, n_pairs, size) if split else range(n_pairs)), n_pairs, split)

    def score(self, score: Callable[..., Scores], model: nn.Module, probes: ProbeSet, **options: Any) -> Scores:
        """`score(model, probes, ...)` of these pairs. `observe` is told them by their numbers in the whole set."""
        if not self.split:
            return score(model, probes, **options)
        observe = options.pop("observe", None)
        rows = torch.tensor(self.rows, dtype=torch.long)

        def renumbered(pairs: Tensor, logits: Tensor, reads: Any) -> None:
            if observe is not None:
                observe(rows[pairs.cpu()], logits, reads)

        return score(model, probes.select(rows), observe=renumbered, **options)

    def whole(self, values: Tensor) -> Tensor:
        """Every process's rows [len(rows), ...] put into one [n, ...]; on the CPU, in the type they have."""
        if not self.split:
            return values
        filled = torch.zeros(
            self.n, *values.shape[1:], dtype=torch.uint8 if values.dtype == torch.bool else values.dtype
        )
        filled[list(self.rows)] = values.to(filled)
        return _reduced(filled, "SUM").to(values.dtype)

    def gather(self, part: Scores, probes: ProbeSet, metrics: Metrics) -> Scores:
        """The scores of all pairs out of every process's part. Every process must come here.

        metrics: family -> the metric that its pairs were read by.
        """
        if not self.split:
            return part
        heads = part.heads if isinstance(part, EdgeScores) else part
        found, checks = heads.readings, heads.checks
        readings = Readings(*(self.whole(x) for x in (found.metric_clean, found.metric_corrupted, found.correct)))
        at_input = self.whole(heads.input)
        worst = [checks.row_sums or 0.0, checks.stream, heads.seconds, heads.peak_memory_mb or 0.0]
        row_sums, stream, seconds, memory = _reduced(torch.tensor(worst), "MAX").tolist()
        whole = replace(
            heads,
            per_pair=self.whole(heads.per_pair),
            input=at_input,
            readings=readings,
            families=probes.families,
            checks=Checks(
                completeness=completeness(at_input, readings, probes.families, metrics),
                row_sums=None if checks.row_sums is None else row_sums,
                stream=stream,
            ),
            seconds=seconds,
            peak_memory_mb=None if heads.peak_memory_mb is None else memory,
        )
        if isinstance(part, EdgeScores):
            return replace(part, per_pair=self.whole(part.per_pair), heads=whole)
        return whole
