"""The memory budget of a run's passes: the same at every probe, on all ranks, and after a resume."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from headwatch.attribution.batch_size import default_budget_gb, free_bytes
from headwatch.attribution.calibration import Budget, measured_budget
from headwatch.attribution.per_family import Metrics
from headwatch.attribution.settings import ScoringSettings
from headwatch.model.read_only import left_trace
from headwatch.monitor.distributed import from_main, reduce_over_ranks, world
from headwatch.probes import ProbeSet

logger = logging.getLogger(__name__)

SAME_DEVICE = 0.8  # a recorded budget is taken again where at least this part of the memory is free


class RunBudget:
    """The memory budget that all processes agree on before the first probe.

    With one budget, batches have the same shapes at every probe, and equal weights have equal scores.

    Args:
        recorded: the manifest's "memory_budget" of a resumed run, on the main process.
    """

    def __init__(self, recorded: Mapping[str, Any] | None = None) -> None:
        self._recorded = recorded
        self._agreed: ScoringSettings | None = None
        self._entry: dict[str, Any] | None = None

    def to_record(self) -> dict[str, Any] | None:
        """The manifest's "memory_budget", once; else None."""
        entry, self._entry = self._entry, None
        return entry

    def settings(
        self,
        settings: ScoringSettings,
        model: nn.Module,
        probes: ProbeSet,
        metrics: Metrics,
        optimizer: object | None = None,
        whole: bool = True,
    ) -> ScoringSettings:
        """The settings with the agreed budget; unchanged where it is fixed anyway. Every process must call this.

        Args:
            settings: of the pass.
            model: the model.
            probes: the pairs that this process scores.
            metrics: the metric of each family.
            optimizer: the trainer's.
            whole: whether the weights are whole, so that processes may run passes of their own.
        """

        def measure(before_gb: float) -> Budget:
            own = replace(settings, memory_budget_gb=before_gb)
            return measured_budget(model, probes, metrics, own, optimizer)

        if self._agreed is None:
            is_fixed = settings.batch_size is not None or settings.memory_budget_gb is not None
            self._agreed = settings if is_fixed else self._with_budget(settings, model, measure if whole else None)
        return self._agreed

    def _with_budget(
        self, settings: ScoringSettings, model: nn.Module, measure: Callable[[float], Budget] | None
    ) -> ScoringSettings:
        """The settings with the default budget, on CUDA the recorded one, or one that `measure` corrects."""
        free = free_bytes(next(model.parameters()).device)
        if free is None and world()[1] == 1:
            return settings
        before = smallest(default_budget_gb(model, free, kept=settings.cuda_graphs))
        if free is None:
            return replace(settings, memory_budget_gb=before)
        recorded = from_main(self._recorded)
        if recorded is not None and before >= SAME_DEVICE * recorded["before_gb"]:
            return replace(settings, memory_budget_gb=float(recorded["gb"]))
        budget = Budget(before, before) if measure is None else measured_or_as_before(measure, before)
        budget = replace(budget, gb=smallest(budget.gb))
        self._entry = budget.to_json()
        return replace(settings, memory_budget_gb=budget.gb)


def measured_or_as_before(measure: Callable[[float], Budget], before_gb: float) -> Budget:
    """The budget that this process measures; as it was where that fails, which the probe itself reports."""
    try:
        return measure(before_gb)
    except Exception as error:
        if left_trace(error):
            raise
        logger.debug("headwatch: no batch could be measured (%s)", error)
        return Budget(before_gb, before_gb)


def smallest(gb: float) -> float:
    """The smallest value of all processes."""
    return float(reduce_over_ranks(torch.tensor([gb], dtype=torch.float64), "MIN"))
