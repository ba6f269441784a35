"""The circuits of a model: one per family, with its faithfulness curve, as rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from headwatch.analysis.faithfulness import SIZES, FaithfulnessCurve, faithfulness_curve
from headwatch.attribution.scores import EdgeScores
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.circuits.circuit import TOP_N, Circuit
from headwatch.circuits.drawing import MAX_EDGES
from headwatch.circuits.selection import select_circuit, sign_stability
from headwatch.errors import UserError
from headwatch.model.head_names import head_name
from headwatch.probes import ProbeSet
from headwatch.stats import EvidenceSettings, signal


@dataclass(frozen=True)
class CircuitOptions:
    """How circuits are selected and evaluated.

    Attributes:
        by, method: ranking and picking of edges, see `headwatch.circuits.selection`.
        edges: edges of the circuit before pruning; None takes the smallest size from which on `enough` is reached.
        enough: faithfulness that the circuit must have.
        controls: random circuits per size.
        sizes: shares of the edges on the curve.
        same_pairs: evaluate on the pairs that select the circuit instead of holding out every second one.
        seed: seed of the random circuits.
    """

    by: str = "mean_abs"
    method: str = "top"
    edges: int | None = None
    enough: float = 0.8
    controls: int = 5
    sizes: tuple[float, ...] = SIZES
    same_pairs: bool = False
    seed: int = 0


@dataclass(frozen=True)
class FamilyCircuit:
    """One family's circuit.

    Attributes:
        family: its name.
        circuit: the circuit.
        curve: faithfulness over sizes.
        edges: the scores that selected it.
        evaluated_on: number of pairs of the curve.
    """

    family: str
    circuit: Circuit
    curve: FaithfulnessCurve
    edges: EdgeScores
    evaluated_on: int

    def to_json(self) -> dict[str, Any]:
        """Plain values: signal on the pairs that select, size, heads by importance, strongest edges, and the curve."""
        importance = self.circuit.importance
        heads = sorted(self.circuit.heads, key=lambda head: -importance[head])
        return {
            "family": self.family,
            "signal": self._signal,
            "edges": len(self.circuit.edges),
            "real_edges": int(self.edges.is_real.sum()),
            "heads": [{"head": head_name(*head), "importance": float(importance[head])} for head in heads],
            "strongest": [
                {"source": source, "target": target, "score": float(score)}
                for (source, target), score in zip(self.circuit.edges[:MAX_EDGES], self.circuit.scores, strict=False)
            ],
            "selected_on": len(self.edges.families),
            "evaluated_on": self.evaluated_on,
            **self.curve.to_json(),
        }

    @property
    def _signal(self) -> str:
        heads = self.edges.heads
        clean, corrupted = heads.readings.metric_clean.numpy(), heads.readings.metric_corrupted.numpy()
        return signal(heads.per_pair.numpy(), clean, corrupted, EvidenceSettings())


def family_circuits(
    model: nn.Module,
    probes: ProbeSet,
    scoring: ScoringSettings,
    options: CircuitOptions,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[FamilyCircuit]:
    """Select and evaluate the circuit of every family.

    Args:
        model: the model.
        probes: the pairs; every second one of a family evaluates the circuit that the others select.
        scoring: metric, points and batches of the scores.
        options: see `CircuitOptions`.
        progress: called with (family, circuits evaluated, circuits in all).

    Raises:
        UserError: a family with fewer than two pairs, or invalid options.
    """
    found = []
    for family in probes.family_names:
        pairs = probes.select(family)
        if len(pairs) < 2 and not options.same_pairs:
            raise UserError(f"family {family!r} has one pair, and none is left to evaluate on; use --same-pairs")
        chosen, held_out = (pairs, pairs) if options.same_pairs else (_every_second(pairs, 0), _every_second(pairs, 1))
        edges = cast(EdgeScores, score_pairs(model, chosen, scoring))
        curve = faithfulness_curve(
            model,
            held_out,
            edges,
            options.sizes,
            by=options.by,
            method=options.method,
            metric=scoring.metric,
            controls=options.controls,
            seed=options.seed,
            memory_budget_gb=scoring.memory_budget_gb,
            progress=None if progress is None else lambda done, total, name=family: progress(name, done, total),  # type: ignore[misc]
        )
        found.append(FamilyCircuit(family, _circuit(edges, curve, options), curve, edges, len(held_out)))
    return found


def stability_of(each: FamilyCircuit) -> float:
    """Mean over the circuit's edges of the share of resamples in which the edge's score keeps its sign."""
    kept = each.circuit.kept(each.edges.sources, each.edges.targets)
    return float(sign_stability(each.edges)[kept].mean()) if kept.any() else float("nan")


def _circuit(edges: EdgeScores, curve: FaithfulnessCurve, options: CircuitOptions) -> Circuit:
    if options.edges is None and (smallest := curve.smallest(options.enough)) is not None:
        return smallest
    n = options.edges or max(1, round(TOP_N * int(edges.is_real.sum())))
    return select_circuit(edges, n, options.by, options.method)


def _every_second(pairs: ProbeSet, first: int) -> ProbeSet:
    return pairs.select(list(range(first, len(pairs), 2)))
