"""Which kernels a run's passes use: decided on its first batch, the same on all ranks and after a resume."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from headwatch.attribution.fused_operations import PARTS
from headwatch.attribution.kernel_trial import PartTrial, try_parts
from headwatch.attribution.per_family import Metrics
from headwatch.attribution.settings import ScoringSettings
from headwatch.attribution.tolerance import limit_of
from headwatch.errors import NonFiniteError, UserError, type_and_message
from headwatch.kernels.launch import DTYPES, installed
from headwatch.model.read_only import left_trace
from headwatch.model.whole_weights import whole_weights
from headwatch.monitor.distributed import ERROR, OK, agree, from_main, reduce_over_ranks
from headwatch.probes import ProbeSet

logger = logging.getLogger(__name__)


class RunKernels:
    """The parts of a run's passes that run as kernels under kernels="auto".

    Args:
        recorded: the manifest's "kernels" of a resumed run, on the main process.
    """

    def __init__(self, recorded: Mapping[str, Any] | None = None) -> None:
        self._recorded = recorded
        self.parts: tuple[str, ...] = ()
        self._entry: dict[str, Any] | None = None
        self._decided, self._written = False, True

    def to_record(self) -> dict[str, Any] | None:
        """The manifest's "kernels", once after each change; else None."""
        entry, self._written = None if self._written else self._entry, True
        return entry

    def _record(self, entry: Mapping[str, Any]) -> None:
        self._entry, self._written = dict(entry), False

    def decide(
        self,
        model: nn.Module,
        probes: ProbeSet,
        metrics: Metrics,
        settings: ScoringSettings,
        optimizer: object | None = None,
        with_budget: Callable[[], ScoringSettings] | None = None,
    ) -> tuple[str, ...]:
        """The parts, measured at the first call; every process must call this.

        Nothing is tried except under kernels="auto" on CUDA with triton installed. A failure is never raised: what
        fails is not used.

        Args:
            model: the model.
            probes: the pairs that this process scores.
            metrics: the metric of each family.
            settings: of the pass.
            optimizer: the trainer's.
            with_budget: the settings with the memory budget of the pass, once the weights are whole.
        """
        if self._decided:
            return self.parts
        self._decided = True
        like = next(model.parameters())
        if settings.kernels != "auto" or like.device.type != "cuda" or like.dtype not in DTYPES:
            return self.parts
        usable = agree(OK if installed() else ERROR) == OK
        recorded = from_main(self._recorded)
        if recorded is not None:
            self._take(recorded, usable)
        elif usable:
            self._try(model, probes, metrics, with_budget or (lambda: settings), optimizer)
        return self.parts

    def _take(self, recorded: Mapping[str, Any], usable: bool) -> None:
        parts = tuple(part for part in PARTS if part in (recorded.get("parts") or ()))
        self._entry, self.parts = dict(recorded), parts if usable else ()
        if parts and not usable:
            logger.warning("headwatch: the run began with kernels (%s), but triton is not installed", ", ".join(parts))
            self._record(self._entry | {"parts": [], "failure": "triton is not installed"})

    def _try(
        self,
        model: nn.Module,
        probes: ProbeSet,
        metrics: Metrics,
        settings: Callable[[], ScoringSettings],
        optimizer: object | None,
    ) -> None:
        limit, trials, failure = limit_of(model), [PartTrial(part) for part in PARTS], None
        try:
            metric = metrics[probes.families[0]]
            rows = [row for row, family in enumerate(probes.families) if metrics[family] == metric]
            with whole_weights(model, optimizer):
                trials = try_parts(model, probes.select(rows), metric, settings(), optimizer)
        except Exception as error:  # the probe itself will raise it again, or the kernels are not used
            if left_trace(error):
                raise
            failure = type_and_message(error)
        trials = agreed(trials)
        self.parts = tuple(trial.part for trial in trials if trial.passes(limit))
        failures = [trial.failure for trial in trials if trial.failure is not None]
        failure = failure or (failures[0] if failures else None)
        entry = {"parts": list(self.parts), "limit": limit, "trials": [trial.to_json() for trial in trials]}
        self._record(entry | {"failure": failure})
        if failures:
            logger.warning("headwatch: kernels are not used where they fail (%s)", failures[0])

    def falls_back(self, error: BaseException | None) -> bool:
        """Whether the pass must be repeated without kernels, because one failed on some process; with one warning.

        Every process must call this. Running out of memory, NaN and mistakes of the user are no faults of a kernel.
        """
        if not self.parts:
            return False
        other = (torch.OutOfMemoryError, NonFiniteError, UserError)
        own = error is not None and not isinstance(error, other) and not left_trace(error)
        if agree(ERROR if own else OK) == OK:
            return False
        failure = type_and_message(error) if own and error is not None else "on another process: see its message"
        logger.warning("headwatch: a pass with kernels failed, plain PyTorch is used from now on (%s)", failure)
        self.parts = ()
        self._record((self._entry or {}) | {"parts": [], "failure": failure})
        return True


def agreed(trials: list[PartTrial]) -> list[PartTrial]:
    """The trials as all processes see them: the largest error and time ratio, and any failure."""

    def number(value: float | None) -> float:
        return math.inf if value is None or math.isnan(value) else value

    numbers = torch.tensor([[number(t.error), number(t.time_ratio)] for t in trials], dtype=torch.float64)
    worst = reduce_over_ranks(numbers, "MAX").tolist()
    found = []
    for trial, (error, ratio) in zip(trials, worst, strict=True):
        if math.isfinite(error) and math.isfinite(ratio):
            found.append(PartTrial(trial.part, error, ratio))
        else:
            found.append(PartTrial(trial.part, failure=trial.failure or "it failed, or NaN, on some process"))
    return found
