"""Trial of the kernels: the first batch of a run is scored both ways, and each part of the kernels is measured."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.attribution.calibration import planned_batches
from headwatch.attribution.fused_operations import PARTS
from headwatch.attribution.metrics import Metric
from headwatch.attribution.scores import EdgeScores, HeadScores, heads_of
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.errors import type_and_message
from headwatch.model.read_only import left_trace
from headwatch.probes import ProbeSet

ROUNDS = 2  # timed passes, after one that compiles


@dataclass(frozen=True)
class PartTrial:
    """One part of the kernels against the plain pass.

    Attributes:
        part: of `fused_operations.PARTS`.
        error: largest difference of the mean scores over the largest mean score; None after a failure.
        time_ratio: time with this part over the time without; None after a failure.
        failure: the error that it raised, one line.
    """

    part: str
    error: float | None = None
    time_ratio: float | None = None
    failure: str | None = None

    def passes(self, limit: float) -> bool:
        """Whether the part agrees within `limit` and is faster; not with NaN."""
        return self.error is not None and self.time_ratio is not None and self.error <= limit and self.time_ratio < 1

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def try_parts(
    model: nn.Module,
    probes: ProbeSet,
    metric: str | Metric,
    settings: ScoringSettings,
    optimizer: object | None = None,
) -> list[PartTrial]:
    """Score the first batch without kernels and with each part; the first pass of each is not timed.

    Args:
        model: the model.
        probes: the pairs that this process scores.
        metric: of the first families.
        settings: everything else.
        optimizer: the trainer's; required only under ZeRO-3.

    Raises:
        Exception: the plain pass failed, or a pass left a trace in the model; what a kernel raises is in its trial.
    """
    settings = replace(settings, metric=metric, kernels="auto")
    first = probes.select(list(next(planned_batches(model, probes, settings)).pairs))

    def passes(*parts: str) -> Callable[[], HeadScores | EdgeScores]:
        return lambda: score_pairs(model, first, settings, optimizer=optimizer, kernel_parts=parts)

    plain = passes()
    expected = plain()
    ways: dict[str, Callable[[], HeadScores | EdgeScores]] = {}
    errors: dict[str, float] = {}
    trials: dict[str, PartTrial] = {}
    for part in PARTS:
        try:
            errors[part] = difference_of(passes(part)(), expected)
            ways[part] = passes(part)
        except Exception as error:
            if left_trace(error):
                raise
            trials[part] = PartTrial(part, failure=type_and_message(error))
    seconds = _timed({"": plain, **ways})
    for part in ways:
        trials[part] = PartTrial(part, errors[part], seconds[part] / seconds[""])
    return [trials[part] for part in PARTS]


def _timed(ways: Mapping[str, Callable[[], HeadScores | EdgeScores]]) -> dict[str, float]:
    """Shortest seconds of each; a pass waits for the device before it reads the clock. Alternating, so that all see the
    same load.
    """
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, run in ways.items():
            best[name] = min(best[name], heads_of(run()).seconds)
    return best


def difference_of(found: HeadScores | EdgeScores, expected: HeadScores | EdgeScores) -> float:
    """Largest difference of the mean scores over the largest mean score, of heads and of edges; NaN if any is NaN."""
    pairs = [(heads_of(found).per_pair, heads_of(expected).per_pair)]
    if isinstance(found, EdgeScores) and isinstance(expected, EdgeScores):
        pairs.append((found.per_pair, expected.per_pair))

    def error(own: Tensor, plain: Tensor) -> Tensor:
        own, plain = own.mean(0), plain.mean(0)
        largest = (own - plain).abs().max()
        return largest / plain.abs().max() if bool(plain.any()) else largest

    return float(torch.stack([error(*pair) for pair in pairs]).max())
