"""One probe, from the histories to the record and the sinks."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwatch.analysis.event_patching import HeadsByFamily
from headwatch.attribution import EdgeScores, HeadScores
from headwatch.circuits.circuit import Graph
from headwatch.circuits.selection import graph_of
from headwatch.circuits.stability import CircuitHeads, EdgeStatistics, edge_statistics, real_edges
from headwatch.lives.events import Event
from headwatch.monitor.alerts import Alert
from headwatch.monitor.probe_timer import ProbeTimer
from headwatch.record.probe_scores import ProbeScores


@dataclass
class ProbeResult:
    """What is measured and concluded at one step.

    Attributes:
        step: the trainer's global step.
        heads: head scores of all pairs.
        edges: edge scores of all pairs, until they are reduced; None if edges are not scored.
        edge_statistics: what the circuit rule needs of each family's edges, once they are reduced.
        graph: rows and columns of the edges, once they are reduced.
        kl: KL from the base model, [N]; None without a base.
        scalars: logged numbers, by name.
        events: new events and earlier ones that this probe settles.
        alerts: alerts of this probe.
        circuits: circuit heads of each family; empty if edges are not scored.
        edges_mean_abs: mean |edge score| of each family, [S, R]; empty if edges are not scored.
        to_patch: heads to patch exactly, by family.
        patched: exact effects of these heads, [N, L, H]; NaN for others, None if nothing is patched.
    """

    step: int
    heads: HeadScores
    edges: EdgeScores | None
    kl: Tensor | None
    edge_statistics: dict[str, EdgeStatistics] = field(default_factory=dict)
    graph: Graph | None = None
    scalars: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    circuits: list[CircuitHeads] = field(default_factory=list)
    edges_mean_abs: list[np.ndarray[Any, Any]] = field(default_factory=list)
    to_patch: HeadsByFamily = field(default_factory=dict)
    patched: Tensor | None = None

    @property
    def alerts_text(self) -> str:
        """All alerts in one line."""
        return " | ".join(alert.text for alert in self.alerts)

    @property
    def checks(self) -> dict[str, float | None]:
        """The pass's own errors, by the names under which they are logged; None if not computed."""
        checks = self.heads.checks
        return {
            "completeness_error": checks.completeness,
            "row_sum_error": checks.row_sums,
            "stream_error": checks.stream,
        }

    def cost(self, timer: ProbeTimer) -> dict[str, float]:
        """Time and memory of the probe so far, by the names under which they are logged."""
        cost = {
            "pass_seconds": self.heads.seconds,
            "seconds": timer.seconds(),
            "overhead": timer.overhead(),
            "peak_memory_mb": self.heads.peak_memory_mb,
        }
        return {name: value for name, value in cost.items() if value is not None}

    def reduce_edges(self, families: Iterable[str], top_n: float, tau: float | None, seed: int) -> None:
        """Reduce the edges of all pairs to statistics, where they are, and drop them: they are larger than all else.

        Args:
            families: the families with a circuit.
            top_n, tau, seed: the paper's circuit rule.
        """
        if self.edges is None:
            return
        self.graph = graph_of(self.edges)
        strength, self.edges = real_edges(self.edges.per_pair, self.graph), None
        for family in families:
            rows = [row for row, name in enumerate(self.heads.families) if name == family]
            self.edge_statistics[family] = edge_statistics(strength[consecutive(rows)], top_n, tau, seed=seed)

    def arrays(self) -> ProbeScores:
        """The arrays that the run folder keeps."""
        readings, circuits = self.heads.readings, self.circuits
        return ProbeScores(
            head_scores=self.heads.per_pair.float().numpy(),
            metric_clean=readings.metric_clean.float().numpy(),
            metric_corrupted=readings.metric_corrupted.float().numpy(),
            correct=readings.correct.to(torch.uint8).numpy(),
            kl_from_base=None if self.kl is None else self.kl.numpy(),
            patched=None if self.patched is None else self.patched.numpy(),
            circuit_active=np.stack([c.active for c in circuits]) if circuits else None,
            circuit_stability=np.stack([c.stability for c in circuits]).astype(np.float32) if circuits else None,
            importance=np.stack([c.importance for c in circuits]).astype(np.float32) if circuits else None,
            importance_draws=np.stack([c.importance_draws for c in circuits]) if circuits else None,
            edges_mean_abs=np.stack(self.edges_mean_abs).astype(np.float32) if self.edges_mean_abs else None,
        )


def consecutive(rows: list[int]) -> slice | list[int]:
    """The rows as a slice if they are consecutive, which copies nothing."""
    if rows and rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return rows
