"""The arrays of one probe; score_file.py is about their file."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.errors import UserError

DTYPES = {"correct": np.uint8, "circuit_active": np.bool_}  # the others are float32


@dataclass(frozen=True)
class ProbeScores:
    """The arrays of one probe, cast to the types below. N pairs, L layers, H heads, F families, S sources, R targets.

    Attributes:
        head_scores: float32 [N, L, H], (metric if the head were corrupted) - (metric as it is).
        metric_clean, metric_corrupted: float32 [N].
        correct: uint8 [N], 1 where the most likely token is the clean answer.
        kl_from_base: float32 [N], KL of the clean answers' distribution from the base model's, in nats.
        patched: float32 [N, L, H], exact effects of the heads that were patched at this probe; NaN for the others.
        circuit_active: bool [F, L, H], the heads of the circuit rule; families in the manifest's order.
        circuit_stability: float32 [F, L, H], share of bootstrap resamples whose circuit keeps the head.
        importance: float32 [F, L, H], the paper's I(l, h).
        importance_draws: float32 [F, B, L, H], the importance in B resamples of the pairs, the same at every probe.
        edges_mean_abs: float32 [F, S, R], mean |edge score|; the file keeps 12 bits of each, see packed_edges.py.

    Raises:
        UserError: an array has another shape.
    """

    head_scores: NDArray[Any]
    metric_clean: NDArray[Any]
    metric_corrupted: NDArray[Any]
    correct: NDArray[Any] | None = None
    kl_from_base: NDArray[Any] | None = None
    patched: NDArray[Any] | None = None
    circuit_active: NDArray[Any] | None = None
    circuit_stability: NDArray[Any] | None = None
    importance: NDArray[Any] | None = None
    importance_draws: NDArray[Any] | None = None
    edges_mean_abs: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for name, value in self.arrays().items():
            # A frozen dataclass stores the cast arrays this way only. safetensors needs them contiguous.
            object.__setattr__(self, name, np.ascontiguousarray(value, dtype=DTYPES.get(name, np.float32)))
        if self.head_scores.ndim != 3:
            raise UserError(f"head_scores has shape {self.head_scores.shape}: give [N, L, H]")
        n_pairs, *heads = self.head_scores.shape
        for name in ("metric_clean", "metric_corrupted", "correct", "kl_from_base"):
            array = getattr(self, name)
            if array is not None and array.shape != (n_pairs,):
                raise UserError(f"{name} has shape {array.shape}: give [{n_pairs}], one value per pair")
        if self.patched is not None and self.patched.shape != self.head_scores.shape:
            raise UserError(f"patched has shape {self.patched.shape}: give {self.head_scores.shape}, as head_scores")
        for name in ("circuit_active", "circuit_stability", "importance"):
            array = getattr(self, name)
            if array is not None and (array.ndim != 3 or list(array.shape[1:]) != heads):
                raise UserError(f"{name} has shape {array.shape}: give [F, {heads[0]}, {heads[1]}]")
        draws = self.importance_draws
        if draws is not None and (draws.ndim != 4 or list(draws.shape[2:]) != heads):
            raise UserError(f"importance_draws has shape {draws.shape}: give [F, B, {heads[0]}, {heads[1]}]")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}
