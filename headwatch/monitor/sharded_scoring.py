"""The pairs of a probe distributed over the ranks, and their scores gathered."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.per_family import Metrics, completeness
from headwatch.attribution.scores import Checks, Readings
from headwatch.monitor.distributed import is_sharded, reduce_over_ranks, world
from headwatch.probes import ProbeSet

Scores = TypeVar("Scores", HeadScores, EdgeScores)


@dataclass(frozen=True)
class PairShard:
    """The pairs that this rank scores: r, r + W, ... of W ranks; all pairs if the model is sharded or pairs are few.

    Under DDP a forward pass is not a collective, so ranks may run different numbers of batches.

    Attributes:
        rows: which of the n pairs.
        split: whether other ranks score the other pairs.
    """

    rows: tuple[int, ...]
    n: int
    split: bool

    @classmethod
    def of(cls, n_pairs: int, model: nn.Module) -> "PairShard":
        """The pairs of this rank."""
        rank, size = world()
        split = 1 < size <= n_pairs and not is_sharded(model)
        return cls(tuple(range(rank, n_pairs, size) if split else range(n_pairs)), n_pairs, split)

    def score(self, score: Callable[..., Scores], model: nn.Module, probes: ProbeSet, **options: Any) -> Scores:
        """Call `score(model, probes, ...)` with these pairs; `observe` gets their indices in the whole set."""
        if not self.split:
            return score(model, probes, **options)
        observe = options.pop("observe", None)
        rows = torch.tensor(self.rows, dtype=torch.long)

        def renumbered(pairs: Tensor, logits: Tensor, reads: Any) -> None:
            if observe is not None:
                observe(rows[pairs.cpu()], logits, reads)

        return score(model, probes.select(rows), observe=renumbered, **options)

    def whole(self, values: Tensor) -> Tensor:
        """Gather the rows [len(rows), ...] of all ranks into [n, ...]; on the CPU, same dtype."""
        if not self.split:
            return values
        filled = torch.zeros(
            self.n, *values.shape[1:], dtype=torch.uint8 if values.dtype == torch.bool else values.dtype
        )
        filled[list(self.rows)] = values.to(filled)
        return reduce_over_ranks(filled, "SUM").to(values.dtype)

    def gather(self, part: Scores, probes: ProbeSet, metrics: Metrics) -> Scores:
        """Gather the scores of all pairs; every rank must call this.

        metrics: the metric of each family.
        """
        if not self.split:
            return part
        heads = part.heads if isinstance(part, EdgeScores) else part
        found, checks = heads.readings, heads.checks
        readings = Readings(*(self.whole(x) for x in (found.metric_clean, found.metric_corrupted, found.correct)))
        at_input = self.whole(heads.input)
        worst = [checks.row_sums or 0.0, checks.stream, heads.seconds, heads.peak_memory_mb or 0.0]
        row_sums, stream, seconds, memory = reduce_over_ranks(torch.tensor(worst), "MAX").tolist()
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
