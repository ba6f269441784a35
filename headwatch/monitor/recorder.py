"""Update histories, write the run folder, then log to the sinks, after each probe."""

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

COUPLED = "reward"  # the logged value whose correlation with the heads is tested


class Recorder:
    """One run's histories and its record, on the main process.

    Args:
        run: the run folder.
        probes: the probe set.
        shape: layers and heads.
        evidence: settings of the evidence rule.
        circuit_rule: top_n, tau and the seed of the paper's circuit rule; None where edges are not scored.
        thresholds: alert thresholds.

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
        """Restore the histories from the run folder, to continue them."""
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
        """Record what the trainer logged."""
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
        """Process one probe.

        Args:
            step: the trainer's global step.
            scores: of all pairs.
            kl: KL from the base model, [N]; None without a base.
            began: time.perf_counter() at the start of the pass.
            sinks: where the probe is shown.
            final: whether it is the last probe of the run.
        """
        heads = scores.heads if isinstance(scores, EdgeScores) else scores
        checks = _checks(heads)
        scalars: dict[str, Any] = {name: value for name, value in checks.items() if value is not None}
        circuits: list[CircuitHeads] = []
        mean_abs: list[np.ndarray[Any, Any]] = []
        events: list[Event] = []
        for family in self.histories:
            events += self._update_history(step, family, heads.select(family), scalars)
            if isinstance(scores, EdgeScores):
                mine = scores.select(family)
                circuits.append(self._circuit(mine))
                mean_abs.append(mine.mean_abs().numpy())
                events += self._update_circuit(step, family, circuits[-1], scalars)
        if kl is not None:
            scalars |= {f"{name}/kl_from_base": value for name, value in mean_by_family(kl, heads.families).items()}
        raised: list[Alert] = self._or_warn(lambda: self._alerts(checks), "the alerts") or []
        scalars |= self._or_warn(self._coupling, "the reward coupling") or {}
        scalars |= alert_scalars(raised)
        scalars |= {"pass_seconds": heads.seconds, "seconds": time.perf_counter() - began}
        if heads.peak_memory_mb is not None:
            scalars["peak_memory_mb"] = heads.peak_memory_mb
        self._write(step, heads, kl, circuits, mean_abs)
        self.run.append_events(events)
        self.run.append_alerts([alert.to_json() for alert in raised])
        text = " | ".join(alert.text for alert in raised)
        self.run.append_scalars(step, {**scalars, "alerts_text": text})
        self._warn_of(raised)
        self._show(step, scalars, text, sinks, final)

    # --- histories --------------------------------------------------------------------------------------------------

    def _update_history(self, step: int, family: str, heads: HeadScores, scalars: dict[str, Any]) -> list[Event]:
        """Add a family's scores to its history and its numbers to `scalars`; returns its events."""
        history, readings = self.histories[family], heads.readings
        events = history.add(
            step, heads.per_pair.numpy(), readings.metric_clean.numpy(), readings.metric_corrupted.numpy()
        )
        self._correct[family].append(readings.correct.numpy())
        scalars |= {f"{family}/{key}": value for key, value in history.latest_scalars().items()}
        scalars[f"{family}/accuracy"] = float(readings.correct.float().mean())
        return events

    def _update_circuit(self, step: int, family: str, found: CircuitHeads, scalars: dict[str, Any]) -> list[Event]:
        """The same by the circuit rule."""
        circuit = self.circuits[family]
        events = circuit.add_membership(step, found.active, found.importance, found.stability, found.importance_draws)
        latest = circuit.latest_scalars() | found.scalars()
        scalars |= {f"{family}/circuit/{key}": value for key, value in latest.items()}
        return events

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
            mine = coupling_scalars(history.steps, history.newly_active(), history.turnover(), self.training, COUPLED)
            found |= {f"{family}/{key}": value for key, value in mine.items()}
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

    def _warn_of(self, raised: list[Alert]) -> None:
        """Log the first alert of each kind to the console; all of them are in the record."""
        for alert in raised:
            if alert.kind not in self._warned:
                self._warned.add(alert.kind)
                logger.warning("headwatch, step %d: %s", alert.step, alert.text)

    def _show(self, step: int, scalars: dict[str, Any], text: str, sinks: Sequence[Sink], final: bool) -> None:
        """Log to the sinks. The record is complete by now, so a failure here only costs a view."""
        if not sinks:
            return
        # The data is a snapshot: a sink draws the figures in its own thread while training continues.
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
        """The result of `action`; None if it raises, with a warning the first time."""
        try:
            return action()
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                logger.warning(
                    "headwatch: %s failed (%s: %s); the probes are recorded without.", what, type(error).__name__, error
                )
            return None


def _checks(heads: HeadScores) -> dict[str, float | None]:
    """The pass's own errors, by the names under which they are logged."""
    checks = heads.checks
    return {
        "completeness_error": checks.completeness,
        "row_sum_error": checks.row_sums,
        "stream_error": checks.stream,
    }


def _drawn(data: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every family's figures as plotly JSON, named family/figure."""
    return {f"{family}/{name}": figure for family, f in data.items() for name, figure in plotly.draw(f).items()}
