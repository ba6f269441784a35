"""Faithfulness of a circuit: the part of the metric gap that it keeps when every other edge is corrupted.

    faithfulness = (metric(circuit) - metric(corrupted)) / (metric(clean) - metric(corrupted)),

with the mean over the pairs of numerator and denominator. The circuit of all edges has 1, the empty one 0.
CPR and CMD (Mechanistic Interpretability Benchmark, Mueller et al. 2025) are areas over the share of edges k, by the
trapezoidal rule at its ten sizes: CPR under faithfulness(k), larger is better; CMD between faithfulness(k) and 1,
smaller is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headwatch.analysis.edge_ablation import run_circuits
from headwatch.attribution.metrics import Metric
from headwatch.attribution.scores import EdgeScores, Readings
from headwatch.circuits.circuit import Bools, Circuit
from headwatch.circuits.selection import edge_strength, graph_of, random_edges, select_edges
from headwatch.errors import UserError
from headwatch.model.anatomy import Anatomy
from headwatch.probes import ProbeSet
from headwatch.stats import pair_weights

Floats = NDArray[np.float64]

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges at which the benchmark evaluates."""


def faithfulness(
    model: nn.Module,
    probes: ProbeSet,
    circuit: Circuit,
    metric: str | Metric = "logit_diff",
    *,
    memory_budget_gb: float | None = None,
) -> float:
    """The part of the metric gap between clean and corrupted prompts that a circuit alone keeps.

    Args:
        model: a Hugging Face causal language model; it is left unchanged.
        probes: the pairs, ideally other ones than those that selected the circuit.
        circuit: its edges.
        metric: "logit_diff", "kl", "nll", or a callable.
        memory_budget_gb: see `score_heads`.

    Returns:
        1 for the circuit of all edges, 0 for the empty one; it may be above 1 or below 0.

    Raises:
        UserError: an edge that the model does not have, or pairs without a metric gap.

    >>> faithfulness(model, probes, Circuit.select(score_edges(model, probes)))     # doctest: +SKIP
    """
    anatomy = Anatomy.of(model)
    kept = torch.from_numpy(circuit.kept(anatomy.sources, anatomy.targets))[None]
    values, readings = run_circuits(model, probes, kept, metric, memory_budget_gb=memory_budget_gb)
    return float(ratio_of_means(values.numpy(), readings)[0])


def ratio_of_means(values: NDArray[Any], readings: Readings, weights: NDArray[Any] | None = None) -> Floats:
    """Faithfulness of each circuit.

    Args:
        values: the metric of each circuit, [C, N].
        readings: of the clean and corrupted runs.
        weights: of the pairs, [N] or [draws, N]; None: equal.

    Returns:
        [C], or [draws, C].

    Raises:
        UserError: the mean gap is zero.
    """
    clean, corrupted = readings.metric_clean.double().numpy(), readings.metric_corrupted.double().numpy()
    weights = np.full(len(clean), 1.0 / len(clean)) if weights is None else weights
    gap = weights @ (clean - corrupted)
    if not np.all(gap):
        raise UserError("probes: the metric of clean and corrupted prompts is equal, so faithfulness is undefined")
    kept = weights @ (np.asarray(values, np.float64) - corrupted).T
    return np.asarray(kept / gap[..., None] if np.ndim(gap) else kept / gap)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness of circuits of growing size, and of random circuits with as many edges.

    Attributes:
        sizes: share of the edges before pruning, [K].
        circuits: the circuits, [K].
        value: faithfulness, [K].
        lower, upper: 95 % interval by a bootstrap over the pairs, [K].
        random: faithfulness of the controls, [controls, K].
        by, method: how edges were ranked and picked.
        metric: of the runs.
    """

    sizes: tuple[float, ...]
    circuits: tuple[Circuit, ...]
    value: Floats
    lower: Floats
    upper: Floats
    random: Floats
    by: str
    method: str
    metric: str

    @property
    def cpr(self) -> float:
        """Area under the curve."""
        return float(area(self.sizes, self.value))

    @property
    def cmd(self) -> float:
        """Area between the curve and 1."""
        return float(area(self.sizes, np.abs(1.0 - self.value)))

    def smallest(self, enough: float = 0.8) -> Circuit | None:
        """The smallest circuit from which on every larger one has at least this faithfulness; None if none has."""
        below = np.flatnonzero(self.value < enough)
        first = int(below[-1]) + 1 if len(below) else 0
        return self.circuits[first] if first < len(self.circuits) else None

    def to_json(self) -> dict[str, Any]:
        """Plain values: one row per size, CPR and CMD of the circuits and of the controls."""
        rows = [
            {
                "size": size,
                "edges": len(circuit.edges),
                "heads": len(circuit.heads),
                "faithfulness": float(self.value[k]),
                "lower": float(self.lower[k]),
                "upper": float(self.upper[k]),
                "random": [float(value) for value in self.random[:, k]],
            }
            for k, (size, circuit) in enumerate(zip(self.sizes, self.circuits, strict=True))
        ]
        return {
            "rank_by": self.by,
            "method": self.method,
            "metric": self.metric,
            "curve": rows,
            "cpr": self.cpr,
            "cmd": self.cmd,
            "random_cpr": [float(area(self.sizes, values)) for values in self.random],
            "random_cmd": [float(area(self.sizes, np.abs(1.0 - values))) for values in self.random],
        }


def area(sizes: Sequence[float], values: Floats) -> float:
    """Area under a curve over the share of edges, by the trapezoidal rule."""
    return float(np.trapezoid(np.asarray(values, np.float64), np.asarray(sizes, np.float64)))


def faithfulness_curve(
    model: nn.Module,
    probes: ProbeSet,
    edges: EdgeScores,
    sizes: Sequence[float] = SIZES,
    *,
    by: str = "mean_abs",
    method: str = "top",
    metric: str | Metric | None = None,
    controls: int = 5,
    seed: int = 0,
    memory_budget_gb: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FaithfulnessCurve:
    """Faithfulness over the size of the circuit.

    Args:
        model: the model whose edges were scored.
        probes: the pairs to evaluate on; with other pairs than those of `edges`, the selection cannot fit their noise.
        edges: the scores that rank the edges.
        sizes: shares of the edges.
        by, method: see `headwatch.circuits.selection`.
        metric: None is that of the scores.
        controls: random circuits per size, each with as many edges as the circuit.
        seed: seed of the random circuits and of the bootstrap.
        memory_budget_gb: see `score_heads`.
        progress: called with (circuits done, circuits in all).

    Raises:
        UserError: an unknown ranking or method, sizes that do not grow, or pairs without a metric gap.
    """
    if list(sizes) != sorted(set(sizes)) or not all(0.0 <= size <= 1.0 for size in sizes):
        raise UserError(f"sizes={list(sizes)!r} must be growing shares of the edges, from 0 to 1")
    graph, strength = graph_of(edges), edge_strength(edges, by)
    signed = edge_strength(edges, "mean") if method == "ratio" else None
    n_real, mean_abs = int(graph.is_real.sum()), edges.mean_abs().numpy().astype(np.float64)
    kept: list[Bools] = []
    for size in sizes:
        every = size == 1.0  # by any ranking
        kept.append(graph.is_real if every else select_edges(strength, graph, int(size * n_real), method, signed))
    random = [
        [random_edges(graph, int(own.sum()), seed + 1000 * control + k) for k, own in enumerate(kept)]
        for control in range(controls)
    ]
    chosen = edges.heads.metric if metric is None else metric
    values, readings = _in_parts(model, probes, [*kept, *chain(*random)], chosen, memory_budget_gb, progress)
    found = ratio_of_means(values, readings).reshape(1 + controls, len(kept))
    weights = pair_weights(len(probes), 1000, np.random.default_rng(seed)) / len(probes)
    draws = ratio_of_means(values[: len(kept)], readings, weights)
    return FaithfulnessCurve(
        sizes=tuple(sizes),
        circuits=tuple(
            Circuit.of_kept(mean_abs, own, graph, size, None) for own, size in zip(kept, sizes, strict=True)
        ),
        value=found[0],
        lower=np.quantile(draws, 0.025, axis=0),
        upper=np.quantile(draws, 0.975, axis=0),
        random=found[1:],
        by=by,
        method=method,
        metric=chosen if isinstance(chosen, str) else getattr(chosen, "__name__", "custom"),
    )


def _in_parts(
    model: nn.Module,
    probes: ProbeSet,
    kept: Sequence[Bools],
    metric: str | Metric,
    memory_budget_gb: float | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[NDArray[Any], Readings]:
    """The metric of all circuits, [C, N], a few at a time to report progress."""
    at_once = len(kept) if progress is None else 10
    values = []
    for first in range(0, len(kept), at_once):
        part = torch.from_numpy(np.stack(kept[first : first + at_once]))
        found, readings = run_circuits(model, probes, part, metric, memory_budget_gb=memory_budget_gb)
        values.append(found.numpy())
        if progress is not None:
            progress(min(first + at_once, len(kept)), len(kept))
    return np.concatenate(values), readings
