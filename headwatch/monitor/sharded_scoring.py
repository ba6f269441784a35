"""The pairs of a probe distributed over the ranks, and their scores gathered."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from headwatch.analysis.event_patching import HeadsByFamily, patch_families
from headwatch.attribution import Checks, EdgeScores, HeadScores
from headwatch.attribution.observer import renumbered
from headwatch.attribution.per_family import Metrics, completeness
from headwatch.attribution.scores import combine_pairs, heads_of, merge, place, replace_heads
from headwatch.model.anatomy import Anatomy
from headwatch.model.read_only import left_trace
from headwatch.monitor.distributed import ERROR, OK, agree, gather_on_main, reduce_over_ranks, world
from headwatch.probes import ProbeSet

logger = logging.getLogger(__name__)

Scores = TypeVar("Scores", bound=HeadScores | EdgeScores)


@dataclass(frozen=True)
class PairShard:
    """The pairs that this rank scores: r, r + W, ... of W ranks; all pairs if there are fewer of them than ranks.

    Where the model's weights are whole during a probe (`whole_weights`), a forward pass is not a collective and ranks
    may run different numbers of batches. Where layers are gathered one at a time it is one, and each rank scores all.

    Attributes:
        rows: which of the n pairs.
        split: whether other ranks score the other pairs.
    """

    rows: tuple[int, ...]
    n: int
    split: bool

    @classmethod
    def of(cls, n_pairs: int, shared: bool = True) -> "PairShard":
        """The pairs of this rank; all of them if they are not shared."""
        rank, size = world()
        split = shared and 1 < size <= n_pairs
        return cls(tuple(range(rank, n_pairs, size) if split else range(n_pairs)), n_pairs, split)

    def score(self, score: Callable[..., Scores], model: nn.Module, probes: ProbeSet, **options: Any) -> Scores:
        """Call `score(model, probes, ...)` with these pairs; `observe` gets their indices in the whole set."""
        if not self.split:
            return score(model, probes, **options)
        observe = renumbered(options.pop("observe", None), self.rows)
        return score(model, probes.select(list(self.rows)), observe=observe, **options)

    def patch(
        self,
        model: nn.Module,
        probes: ProbeSet,
        metrics: Metrics,
        heads: HeadsByFamily,
        memory_budget_gb: float | None,
        optimizer: object | None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor | None:
        """Patch heads on these pairs and gather the effects [N, L, H]; None, with one warning, if a process failed.

        Every rank must call this. See `patch_families` for the arguments.
        """
        anatomy = Anatomy.of(model)
        shape, error = (anatomy.n_layers, anatomy.n_heads), None
        own = probes.select(list(self.rows)) if self.split else probes
        try:
            options = {"memory_budget_gb": memory_budget_gb, "optimizer": optimizer, "progress": progress}
            part = patch_families(model, own, metrics, heads, shape, **options)
        except Exception as caught:
            if left_trace(caught):
                raise
            error = caught
        if agree(OK if error is None else ERROR) == OK:
            return self.whole(part)
        if error is not None:
            logger.warning(
                "headwatch: exact patching failed (%s: %s); events are recorded without it.",
                type(error).__name__,
                error,
            )
        return None

    def whole(self, values: Tensor) -> Tensor:
        """Gather the rows [len(rows), ...] of all ranks into [n, ...]; on the CPU, same dtype."""
        return _summed(place([values], [self.rows], self.n)) if self.split else values

    def gather(self, part: HeadScores | EdgeScores, probes: ProbeSet, metrics: Metrics) -> HeadScores | EdgeScores:
        """Gather the scores of all pairs; every rank must call this.

        metrics: the metric of each family.

        Returns:
            The head scores of all pairs. On the main process edges as well: the circuit rule resamples pairs, so it
            needs those of each pair, which are too large to send to everyone.
        """
        if not self.split:
            return part
        own = merge([heads_of(part)], [self.rows], probes.families)
        whole = combine_pairs([own], lambda tensors: _summed(tensors[0]))
        checks = heads_of(part).checks
        worst = [checks.row_sums or 0.0, checks.stream, own.seconds, own.peak_memory_mb or 0.0]
        row_sums, stream, seconds, memory = reduce_over_ranks(torch.tensor(worst), "MAX").tolist()
        heads = replace_heads(
            whole,
            checks=Checks(
                completeness=completeness(whole.input, whole.readings, probes.families, metrics),
                row_sums=None if checks.row_sums is None else row_sums,
                stream=stream,
            ),
            seconds=seconds,
            peak_memory_mb=None if own.peak_memory_mb is None else memory,
        )
        if not isinstance(part, EdgeScores):
            return heads
        edges = self._on_main(part.per_pair)
        return heads if edges is None else replace(part, per_pair=edges, heads=heads)

    def _on_main(self, values: Tensor) -> Tensor | None:
        """Gather the rows [len(rows), ...] of all ranks into [n, ...] on the main process; None on the others."""
        size = world()[1]
        most = -(-self.n // size)  # rows of the rank with most pairs
        padding = values.new_zeros(most - len(values), *values.shape[1:])
        parts = gather_on_main(torch.cat([values, padding]))
        if parts is None:
            return None
        # Rank r has the pairs r, r + W, ...: stacked along a second axis they are in order.
        return torch.stack(parts, 1).flatten(0, 1)[: self.n]


def _summed(values: Tensor) -> Tensor:
    """The sum over processes, in the dtype of `values`; bool, which has no sum, as integers."""
    return reduce_over_ranks(values.to(torch.uint8) if values.dtype == torch.bool else values, "SUM").to(values.dtype)
