"""Update histories, write the run folder, then log to the sinks, after each probe."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.base_kl import mean_by_family
from headwatch.circuits.circuit import Graph
from headwatch.circuits.stability import CircuitHeads, circuit_heads
from headwatch.errors import StartError
from headwatch.lives.events import Event
from headwatch.lives.history import HeadHistory
from headwatch.lives.reward_coupling import coupling_scalars
from headwatch.monitor.alert_rules import find_alerts
from headwatch.monitor.alerts import DEFAULTS, WARNING, Alert, AlertSettings, alert_scalars
from headwatch.monitor.probe_timer import ProbeTimer
from headwatch.probes import ProbeSet
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.replay import history_from_run, lost_probes
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, plotly, sentences
from headwatch.sinks import Notice, Sink
from headwatch.stats import EvidenceSettings

logger = logging.getLogger(__name__)

COUPLED = "reward"  # the logged value whose correlation with the heads is tested


@dataclass
class ProbeResult:
    """One probe, from the histories to the record and the sinks.

    Attributes:
        step: the trainer's global step.
        heads: head scores of all pairs.
        kl: KL from the base model, [N]; None without a base.
        scalars: logged numbers, by name.
        events: new events and earlier ones that this probe settles.
        alerts: alerts of this probe.
        circuits: circuit heads of each family; empty if edges are not scored.
        edges_mean_abs: mean |edge score| of each family, [S, R]; empty if edges are not scored.
    """

    step: int
    heads: HeadScores
    kl: Tensor | None
    scalars: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    circuits: list[CircuitHeads] = field(default_factory=list)
    edges_mean_abs: list[np.ndarray[Any, Any]] = field(default_factory=list)

    @property
    def alerts_text(self) -> str:
        """All alerts in one line."""
        return " | ".join(alert.text for alert in self.alerts)

    def arrays(self) -> ProbeScores:
        """The arrays that the run folder keeps."""
        readings, circuits = self.heads.readings, self.circuits
        return ProbeScores(
            head_scores=self.heads.per_pair.float().numpy(),
            metric_clean=readings.metric_clean.float().numpy(),
            metric_corrupted=readings.metric_corrupted.float().numpy(),
            correct=readings.correct.to(torch.uint8).numpy(),
            kl_from_base=None if self.kl is None else self.kl.numpy(),
            circuit_active=np.stack([c.active for c in circuits]) if circuits else None,
            circuit_stability=np.stack([c.stability for c in circuits]).astype(np.float32) if circuits else None,
            importance=np.stack([c.importance for c in circuits]).astype(np.float32) if circuits else None,
            importance_draws=np.stack([c.importance_draws for c in circuits]) if circuits else None,
            edges_mean_abs=np.stack(self.edges_mean_abs).astype(np.float32) if self.edges_mean_abs else None,
        )


class Recorder:
    """One run's histories and its record, on the main process.

    Args:
        run: the run folder.
        probes: the probe set.
        shape: layers and heads.
        evidence: settings of the evidence rule.
        circuit_rule: top_n, tau and seed of the paper's circuit rule; None if edges are not scored.
        thresholds: alert thresholds.

    Attributes:
        histories: family -> HeadHistory by the evidence rule.
        circuits: family -> HeadHistory by the circuit rule; empty if edges are not scored.
        training: rows of the trainer's log.
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
        self._noticed: set[tuple[str, str]] = set()  # kind and family of the alerts that the sinks were sent
        self._last: ProbeResult | None = None  # the last probe of the run, shown when training has ended
        self._linked = False  # whether the manifest names the W&B run

    def restore(self) -> None:
        """Restore the histories from the run folder, to continue them."""
        self.training = self.run.training()
        found, lost = self.run.probes()
        if lost and found and min(lost) < min(found):
            raise StartError(
                f"{lost_probes(found, lost)}: events need the base that the run began with; move {self.run.path} away "
                "to begin a new record"
            )
        for family in self.histories:
            self.histories[family] = history_from_run(self.run, family)
            pairs = self.run.pairs_of(family)
            self._correct[family] += [at.correct[pairs] for at in found.values() if at.correct is not None]
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
        timer: ProbeTimer,
        sinks: Sequence[Sink],
        final: bool,
    ) -> None:
        """Process one probe.

        Args:
            step: the trainer's global step.
            scores: of all pairs.
            kl: KL from the base model, [N]; None without a base.
            timer: times this probe.
            sinks: where the probe is shown.
            final: whether it is the last probe of the run.
        """
        result = self._update_histories(step, scores, kl)
        self._add_alerts(result)
        result.scalars |= _cost(result.heads, timer)
        self._write(result)
        self._warn_of(result.alerts)
        if final:  # the trainer logs the loss of this step later: the figures wait for it
            self._last = result
        else:
            self._log_to_sinks(result, sinks, final=False)

    def finish(self, sinks: Sequence[Sink]) -> None:
        """Show the last probe, now that the trainer has logged its last step."""
        if self._last is not None:
            result, self._last = self._last, None
            self._log_to_sinks(result, sinks, final=True)

    # --- update the histories ---------------------------------------------------------------------------------------

    def _update_histories(self, step: int, scores: EdgeScores | HeadScores, kl: Tensor | None) -> ProbeResult:
        """Add the scores to the histories of every family."""
        heads = scores.heads if isinstance(scores, EdgeScores) else scores
        scalars = {name: value for name, value in _checks(heads).items() if value is not None}
        result = ProbeResult(step, heads, kl, scalars)
        for family in self.histories:
            self._update_history(family, heads.select(family), result)
            if isinstance(scores, EdgeScores):
                self._update_circuit(family, scores.select(family), result)
        if kl is not None:
            means = mean_by_family(kl, heads.families)
            result.scalars |= {f"{family}/kl_from_base": value for family, value in means.items()}
        return result

    def _update_history(self, family: str, heads: HeadScores, result: ProbeResult) -> None:
        """Add a family's scores to its history by the evidence rule."""
        history, readings = self.histories[family], heads.readings
        result.events += history.add(
            result.step, heads.per_pair.numpy(), readings.metric_clean.numpy(), readings.metric_corrupted.numpy()
        )
        self._correct[family].append(readings.correct.numpy())
        result.scalars |= {f"{family}/{key}": value for key, value in history.latest_scalars().items()}
        result.scalars[f"{family}/accuracy"] = float(readings.correct.float().mean())

    def _update_circuit(self, family: str, edges: EdgeScores, result: ProbeResult) -> None:
        """Add a family's circuit heads to its history by the circuit rule."""
        history, found = self.circuits[family], self._circuit(edges)
        result.events += history.add_membership(
            result.step, found.active, found.importance, found.stability, found.importance_draws
        )
        latest = history.latest_scalars() | found.scalars()
        result.scalars |= {f"{family}/circuit/{key}": value for key, value in latest.items()}
        result.circuits.append(found)
        result.edges_mean_abs.append(edges.mean_abs().numpy())

    def _circuit(self, scores: EdgeScores) -> CircuitHeads:
        assert self._rule is not None
        top_n, tau, seed = self._rule
        graph = Graph(scores.sources, scores.targets, scores.is_real.numpy())
        return circuit_heads(scores.per_pair.abs().numpy(), graph, top_n, tau, seed=seed)

    def _add_alerts(self, result: ProbeResult) -> None:
        """Add the alerts and the coupling with the reward; if one of them fails, the probe is recorded without it."""
        result.alerts = self._or_warn(lambda: self._alerts(result), "the alerts") or []
        result.scalars |= self._or_warn(self._coupling, "the reward coupling") or {}
        result.scalars |= alert_scalars(result.alerts)

    def _alerts(self, result: ProbeResult) -> list[Alert]:
        checks = _checks(result.heads)
        return find_alerts(self.histories.values(), checks, self._correct, self.training, self.thresholds)

    def _coupling(self) -> dict[str, float]:
        if not any(COUPLED in row for row in self.training):
            return {}
        found: dict[str, float] = {}
        for family, history in self.histories.items():
            mine = coupling_scalars(history.steps, history.newly_active(), history.turnover(), self.training, COUPLED)
            found |= {f"{family}/{key}": value for key, value in mine.items()}
        return found

    # --- write the run folder ---------------------------------------------------------------------------------------

    def _write(self, result: ProbeResult) -> None:
        self.run.write_scores(result.step, result.arrays())
        self.run.append_events(result.events)
        self.run.append_alerts([alert.to_json() for alert in result.alerts])
        self.run.append_scalars(result.step, {**result.scalars, "alerts_text": result.alerts_text})

    # --- log to the console and the sinks ---------------------------------------------------------------------------

    def _warn_of(self, raised: list[Alert]) -> None:
        """Log the first alert of each kind to the console; all of them are in the record."""
        for alert in raised:
            if alert.kind not in self._warned:
                self._warned.add(alert.kind)
                logger.warning("headwatch, step %d: %s", alert.step, alert.text)

    def _log_to_sinks(self, result: ProbeResult, sinks: Sequence[Sink], final: bool) -> None:
        """The record is complete by now, so a failure here only costs a view."""
        if not sinks:
            return
        texts = {"alerts_text": result.alerts_text}
        # The data is a snapshot: a sink draws the figures in its own thread while training continues.
        data = self._or_warn(
            lambda: {family: figure_data.all_figures(h, self.training) for family, h in self.histories.items()},
            "the figures",
        )
        draw = None if data is None else lambda: _drawn(data)
        more: dict[str, Any] = {"texts": texts, "final": final, "notices": self._notices(result.alerts)}
        more["summary"] = self._or_warn(self.lines, "the summary")
        for sink in sinks:
            self._or_warn(
                lambda s=sink: s.log(result.step, result.scalars, draw, **more),  # type: ignore[misc]
                f"{type(sink).__name__}",
            )
            if not self._linked and (info := sink.run_info()):
                self.run.update_manifest(wandb=info)
                self._linked = True

    def lines(self) -> dict[str, str]:
        """Each family's result so far in a few words."""
        return {
            family: sentences.summary(history, accuracy=[float(c.mean()) for c in self._correct[family]])["line"]
            for family, history in self.histories.items()
        }

    def _notices(self, raised: list[Alert]) -> list[Notice]:
        """The alerts of a kind that was not raised on this family before."""
        new = [alert for alert in raised if (alert.kind, alert.family) not in self._noticed]
        self._noticed |= {(alert.kind, alert.family) for alert in new}
        return [Notice(f"headwatch: {a.kind.replace('_', ' ')}", a.text, a.level == WARNING) for a in new]

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


def _cost(heads: HeadScores, timer: ProbeTimer) -> dict[str, float]:
    """Time and memory of the probe, by the names under which they are logged."""
    cost = {
        "pass_seconds": heads.seconds,
        "seconds": timer.seconds(),
        "overhead": timer.overhead(),
        "peak_memory_mb": heads.peak_memory_mb,
    }
    return {name: value for name, value in cost.items() if value is not None}


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
