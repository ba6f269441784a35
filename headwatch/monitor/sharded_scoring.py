"""The pairs of a probe distributed over the ranks, and their scores gathered."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from headwatch.attribution import Checks, EdgeScores, HeadScores, ScoringSettings
from headwatch.attribution.batch_size import default_budget_gb, free_bytes
from headwatch.attribution.observer import renumbered
from headwatch.attribution.per_family import Metrics, completeness
from headwatch.attribution.scores import combine_pairs, heads_of, merge, place, replace_heads
from headwatch.monitor.distributed import is_sharded, reduce_over_ranks, world
from headwatch.probes import ProbeSet

Scores = TypeVar("Scores", bound=HeadScores | EdgeScores)


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
        observe = renumbered(options.pop("observe", None), self.rows)
        return score(model, probes.select(list(self.rows)), observe=observe, **options)

    def whole(self, values: Tensor) -> Tensor:
        """Gather the rows [len(rows), ...] of all ranks into [n, ...]; on the CPU, same dtype."""
        return _summed(place([values], [self.rows], self.n)) if self.split else values

    def gather(self, part: Scores, probes: ProbeSet, metrics: Metrics) -> Scores:
        """Gather the scores of all pairs; every rank must call this.

        metrics: the metric of each family.
        """
        if not self.split:
            return part
        own = merge([part], [self.rows], probes.families)
        whole = combine_pairs([own], lambda tensors: _summed(tensors[0]))
        heads, checks = heads_of(whole), heads_of(part).checks
        worst = [checks.row_sums or 0.0, checks.stream, heads.seconds, heads.peak_memory_mb or 0.0]
        row_sums, stream, seconds, memory = reduce_over_ranks(torch.tensor(worst), "MAX").tolist()
        return replace_heads(
            whole,
            checks=Checks(
                completeness=completeness(heads.input, heads.readings, probes.families, metrics),
                row_sums=None if checks.row_sums is None else row_sums,
                stream=stream,
            ),
            seconds=seconds,
            peak_memory_mb=None if heads.peak_memory_mb is None else memory,
        )


def with_agreed_budget(settings: ScoringSettings, model: nn.Module) -> ScoringSettings:
    """The settings with the default memory budget that fits every rank; unchanged where it does not depend on the rank.

    Call it once per run: with one budget, batches have the same shapes at every probe.
    """
    free = free_bytes(next(model.parameters()).device)
    if free is None or settings.batch_size is not None or settings.memory_budget_gb is not None:
        return settings
    budget = torch.tensor([default_budget_gb(model, free)], dtype=torch.float64)
    return replace(settings, memory_budget_gb=float(reduce_over_ranks(budget, "MIN")))


def _summed(values: Tensor) -> Tensor:
    """The sum over processes, in the dtype of `values`; bool, which has no sum, as integers."""
    return reduce_over_ranks(values.to(torch.uint8) if values.dtype == torch.bool else values, "SUM").to(values.dtype)
