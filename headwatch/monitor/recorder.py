"""Recorder: what one probe means, told to the histories, the run folder and the sinks, in this order."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.base_kl import mean_by_family
from headwatch.circuits.circuit import Graph
from headwatch.circuits.stability import CircuitHeads, circuit_heads
from headwatch.lives.events import Event
from headwatch.lives.history import HeadHistory
from headwatch.lives.reward_coupling import coupling_scalars
from headwatch.monitor.alerts import DEFAULTS, Alert, AlertSettings, alert_scalars, alerts
from headwatch.probes import ProbeSet
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.replay import history_from_run
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, plotly
from headwatch.sinks import Sink
from headwatch.stats import EvidenceSettings

logger = logging.getLogger(__name__)

COUPLED = "reward"  # the logged value that lives are coupled with


class Recorder:
    """One run's histories and its record, on the main process.

    Args:
        run: the run folder.
        probes: the probe set.
        shape: layers and heads.
        evidence: the numbers of the evidence rule.
        circuit_rule: top_n, tau and the seed of the paper's circuit rule; None where edges are not scored.
        thresholds: of the alerts.

    .histories, .circuits: family -> HeadHistory by the evidence and by the circuit rule. .training: the trainer's logs.
    """

    def __init__(
        self,
        run: RunFolder,
        probes: ProbeSet,
        shape: tuple[int, int],
        evidence: EvidenceSettings,
        circuit_rule: tuple[float, float | None, int] | None,
        thresholds: AlertSettings = DEFAULTS,
    ) -> None:
        self.run, self.probes, self.thresholds = run, probes, thresholds
        self._rule = circuit_rule
        names = probes.family_names
        self.histories = {name: HeadHistory(*shape, settings=evidence, family=name) for name in names}
        self.circuits = {name: HeadHistory(*shape, rule="circuit", family=name) for name in names if circuit_rule}
        self.training: list[dict[str, Any]] = []
        self._correct: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
        self._warned: set[str] = set()
        self._linked = False  # whether the manifest names the service's run

    def restore(self) -> None:
        """Read back what the run folder tells, to go on with it."""
        self.training = self.run.training()
        for family in self.histories:
            self.histories[family] = history_from_run(self.run, family)
            pairs = self.run.pairs_of(family)
            for step in self.run.steps:
                correct = self.run.read_scores(step).correct
                if correct is not None:
                    self._correct[family].append(correct[pairs])
        for family in self.circuits:
            self.circuits[family] = history_from_run(self.run, family, rule="circuit")

    def log(self, step: int, logs: dict[str, Any]) -> None:
        """Keep what the trainer logged."""
        self.training.append({**logs, "step": step})
        self.run.append_training(step, logs)

    def probe(
        self,
        step: int,
        scores: EdgeScores | HeadScores,
        kl: Tensor | None,
        began: float,
        sinks: Sequence[Sink],
        final: bool,
    ) -> None:
        """One probe: kl is [N], from the base; began is when the pass began (perf_counter)."""
        heads = scores.heads if isinstance(scores, EdgeScores) else scores
        checks = {
            "completeness_error": heads.checks.completeness,
            "row_sum_error": heads.checks.row_sums,
            "stream_error": heads.checks.stream,
        }
        scalars: dict[str, Any] = {key: value for key, value in checks.items() if value is not None}
        events: list[Event] = []
        circuits: list[CircuitHeads] = []
        mean_abs: list[np.ndarray[Any, Any]] = []
        for family, history in self.histories.items():
            mine = heads.select(family)
            readings = mine.readings
            events += history.add(
                step, mine.per_pair.numpy(), readings.metric_clean.numpy(), readings.metric_corrupted.numpy()
            )
            self._correct[family].append(readings.correct.numpy())
            scalars |= {f"{family}/{key}": value for key, value in history.latest_scalars().items()}
            scalars[f"{family}/accuracy"] = float(readings.correct.float().mean())
            if isinstance(scores, EdgeScores):
                found = self._circuit(scores.select(family))
                circuits.append(found)
                mean_abs.append(scores.select(family).mean_abs().numpy())
                circuit = self.circuits[family]
                events += circuit.add_membership(
                    step, found.active, found.importance, found.stability, found.importance_draws
                )
                told = circuit.latest_scalars() | found.scalars()
                scalars |= {f"{family}/circuit/{key}": value for key, value in told.items()}
        if kl is not None:
            scalars |= {f"{name}/kl_from_base": value for name, value in mean_by_family(kl, heads.families).items()}
        alerted: list[Alert] = self._or_warn(lambda: self._alerts(checks), "the alerts") or []
        scalars |= self._or_warn(self._coupling, "the reward coupling") or {}
        scalars |= alert_scalars(alerted)
        scalars |= {"pass_seconds": heads.seconds, "seconds": time.perf_counter() - began}
        if heads.peak_memory_mb is not None:
            scalars["peak_memory_mb"] = heads.peak_memory_mb
        self._write(step, heads, kl, circuits, mean_abs)
        self.run.append_events(events)
        self.run.append_alerts([alert.to_json() for alert in alerted])
        text = " | ".join(alert.text for alert in alerted)
        self.run.append_scalars(step, {**scalars, "alerts_text": text})
        self._warn_of(alerted)
        self._show(step, scalars, text, sinks, final)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _circuit(self, scores: EdgeScores) -> CircuitHeads:
        assert self._rule is not None
        top_n, tau, seed = self._rule
        graph = Graph(scores.sources, scores.targets, scores.is_real.numpy())
        return circuit_heads(scores.per_pair.abs().numpy(), graph, top_n, tau, seed=seed)

    def _alerts(self, checks: dict[str, float | None]) -> list[Alert]:
        return alerts(self.histories.values(), checks, self._correct, self.training, self.thresholds)

    def _coupling(self) -> dict[str, float]:
        if not any(COUPLED in row for row in self.training):
            return {}
        found: dict[str, float] = {}
        for family, history in self.histories.items():
            told = coupling_scalars(history.steps, history.newly_active(), history.turnover(), self.training, COUPLED)
            found |= {f"{family}/{key}": value for key, value in told.items()}
        return found

    def _write(
        self,
        step: int,
        heads: HeadScores,
        kl: Tensor | None,
        circuits: list[CircuitHeads],
        mean_abs: list[np.ndarray[Any, Any]],
    ) -> None:
        self.run.write_scores(
            step,
            ProbeScores(
                head_scores=heads.per_pair.float().numpy(),
                metric_clean=heads.readings.metric_clean.float().numpy(),
                metric_corrupted=heads.readings.metric_corrupted.float().numpy(),
                correct=heads.readings.correct.to(torch.uint8).numpy(),
                kl_from_base=None if kl is None else kl.numpy(),
                circuit_active=np.stack([c.active for c in circuits]) if circuits else None,
                circuit_stability=np.stack([c.stability for c in circuits]).astype(np.float32) if circuits else None,
                importance=np.stack([c.importance for c in circuits]).astype(np.float32) if circuits else None,
                importance_draws=np.stack([c.importance_draws for c in circuits]) if circuits else None,
                edges_mean_abs=np.stack(mean_abs).astype(np.float32) if mean_abs else None,
            ),
        )

    def _warn_of(self, told: list[Alert]) -> None:
        """One line in the console for each kind of alert; the others are in the record."""
        for alert in told:
            if alert.kind not in self._warned:
                self._warned.add(alert.kind)
                logger.warning("headwatch, step %d: %s", alert.step, alert.text)

    def _show(self, step: int, scalars: dict[str, Any], text: str, sinks: Sequence[Sink], final: bool) -> None:
        """The record is written: what fails from here on costs a view, and never the probing."""
        if not sinks:
            return
        # Figures are data of their own by now: a sink draws them in its thread while training goes on.
        data = self._or_warn(
            lambda: {family: figure_data.all_figures(h, self.training) for family, h in self.histories.items()},
            "the figures",
        )
        draw = None if data is None else lambda: _drawn(data)
        for sink in sinks:
            self._or_warn(
                lambda s=sink: s.log(step, scalars, draw, texts={"alerts_text": text}, final=final),  # type: ignore[misc]
                f"{type(sink).__name__}",
            )
            if not self._linked and (info := sink.run_info()):
                self.run.update_manifest(wandb=info)
                self._linked = True

    def _or_warn(self, action: Callable[[], Any], what: str) -> Any:
        """What `action` returns; None, and one warning for the first time, when it raises."""
        try:
            return action()
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                logger.warning(
                    "headwatch: %s failed (%s: %s); the probes are recorded without.", what, type(error).__name__, error
                )
            return None


def _drawn(data: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every family's figures as plotly JSON, named family/figure."""
    return {f"{family}/{name}": figure for family, f in data.items() for name, figure in plotly.draw(f).items()}
