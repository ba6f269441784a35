"""Circuits, alerts and reward coupling of a probe, then its files, console lines and rows of the sinks."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwatch.attribution.base_kl import mean_by_family
from headwatch.circuits.circuit import Graph
from headwatch.circuits.stability import EdgeStatistics, circuits_of_statistics, whole_matrix
from headwatch.lives.exact_patching import CONTRADICTS
from headwatch.lives.history import HeadHistory
from headwatch.lives.reward_coupling import logged_means, means_coupling_scalars
from headwatch.monitor.alert_rules import find_alerts
from headwatch.monitor.alerts import Alert, AlertSettings, alert_scalars
from headwatch.monitor.console import say_events
from headwatch.monitor.probe_result import ProbeResult
from headwatch.monitor.sink_rows import SinkRows
from headwatch.record.run_folder import RunFolder
from headwatch.sinks import Sink

logger = logging.getLogger(__name__)

COUPLED = "reward"  # the logged value whose correlation with the heads is tested
EVERY_PROBE, COUPLING_GROWTH = 50, 1.05  # at which probes it is

Rows = Sequence[Mapping[str, Any]]
Histories = dict[str, HeadHistory]


@dataclass(frozen=True)
class Rules:
    """What a probe is judged by, besides the evidence rule.

    Attributes:
        circuit: top_n, tau and seed of the paper's circuit rule; None if edges are not scored.
        alerts: alert thresholds.
        patching: see `WatchSettings`.
    """

    circuit: tuple[float, float | None, int] | None
    alerts: AlertSettings
    patching: str


class ProbeWriter:
    """Completes and records probes, while training continues.

    Its methods run in the recorder's worker, and on the training's thread only once the worker has no job. It changes
    the circuit histories and nothing else that the training's thread reads before it has waited; it reads the evidence
    histories, which change only after that wait. No other thread writes the same files: the trainer's log, written
    while a job runs, is a file of its own.

    Args:
        run: the run folder.
        rules: the circuit rule and the alerts.
        histories: family -> history by the evidence rule.
        circuits: family -> history by the circuit rule; empty if edges are not scored.
        correct: family -> which pairs were answered correctly, for each probe.
    """

    def __init__(
        self,
        run: RunFolder,
        rules: Rules,
        histories: Histories,
        circuits: Histories,
        correct: Mapping[str, list[np.ndarray[Any, Any]]],
    ) -> None:
        self.run, self.rules = run, rules
        self.histories, self.circuits, self._correct = histories, circuits, correct
        self._coupled = 0  # number of probes when the coupling was computed last
        self._warned: set[str] = set()
        self._sink_rows = SinkRows(run, self._or_warn)

    def write(self, result: ProbeResult, training: Rows, sinks: Sequence[Sink]) -> None:
        """Complete and record one probe, then show it.

        Args:
            result: the probe, whose families are in the evidence histories.
            training: rows of the trainer's log so far.
            sinks: where it is shown; none for the last probe, which waits for the trainer's last row.
        """
        began = time.thread_time()
        self._add_circuits(result)
        self._add_scalars(result)
        self._add_alerts(result, training)
        self.run.write_scores(result.step, result.arrays())
        self.run.append_events(result.events)
        self.run.append_alerts([alert.to_json() for alert in result.alerts])
        result.scalars["after_seconds"] = time.thread_time() - began
        self.run.append_scalars(result.step, {**result.scalars, "alerts_text": result.alerts_text})
        say_events(result.step, result.events)
        self._warn_of(result.alerts)
        self.show(result, training, sinks, final=False)

    def show(self, result: ProbeResult, training: Rows, sinks: Sequence[Sink], final: bool) -> None:
        """Send a recorded probe to the sinks."""
        self._sink_rows.send(result, sinks, self.histories, self._correct, training, final)

    # --- complete the probe -----------------------------------------------------------------------------------------

    def _add_circuits(self, result: ProbeResult) -> None:
        """Add each family's circuit heads to its history by the circuit rule."""
        if self.rules.circuit is None:
            return
        result.reduce_edges(self.circuits, *self.rules.circuit)
        for family in self.circuits:
            if family in result.edge_statistics and result.graph is not None:
                self._add_circuit(family, result.edge_statistics.pop(family), result.graph, result)

    def _add_circuit(self, family: str, statistics: EdgeStatistics, graph: Graph, result: ProbeResult) -> None:
        """Add one family's circuit heads."""
        assert self.rules.circuit is not None
        top_n, tau, _ = self.rules.circuit
        history, found = self.circuits[family], circuits_of_statistics(statistics, graph, top_n, tau)
        result.events += history.add_membership(
            result.step, found.active, found.importance, found.stability, found.importance_draws
        )
        latest = history.latest_scalars() | found.scalars()
        result.scalars |= {f"{family}/circuit/{key}": value for key, value in latest.items()}
        result.circuits.append(found)
        result.edges_mean_abs.append(whole_matrix(statistics.mean, graph))

    def _add_scalars(self, result: ProbeResult) -> None:
        """Add the headline numbers of the evidence histories."""
        result.scalars |= {name: value for name, value in result.checks.items() if value is not None}
        patched = self.rules.patching != "none"
        if patched:
            result.scalars.setdefault("patching_seconds", 0.0)
        for family, history in self.histories.items():
            result.scalars |= {f"{family}/{key}": value for key, value in history.latest_scalars().items()}
            result.scalars[f"{family}/accuracy"] = float(self._correct[family][-1].mean())
            if patched:
                verdicts = [event.patching for event in history.events if event.patching is not None]
                result.scalars[f"{family}/events_patched"] = len(verdicts)
                result.scalars[f"{family}/events_contradicted"] = verdicts.count(CONTRADICTS)
        if result.kl is not None:
            means = mean_by_family(result.kl, result.heads.families)
            result.scalars |= {f"{family}/kl_from_base": value for family, value in means.items()}

    def _add_alerts(self, result: ProbeResult, training: Rows) -> None:
        """Add the alerts and the coupling with the reward; if one of them fails, the probe is recorded without it."""
        result.alerts = self._or_warn(lambda: self._alerts(result, training), "the alerts") or []
        result.scalars |= self._or_warn(lambda: self._coupling(training), "the reward coupling") or {}
        result.scalars |= alert_scalars(result.alerts)

    def _alerts(self, result: ProbeResult, training: Rows) -> list[Alert]:
        return find_alerts(self.histories.values(), result.checks, self._correct, training, self.rules.alerts)

    def _coupling(self, training: Rows) -> dict[str, float]:
        """Correlation of the heads with the reward. Its cost grows with the number of probes, so it is computed at ever
        fewer of them: after the first 50, whenever their number has grown by 5 %.
        """
        n = len(next(iter(self.histories.values())).steps)
        if n > EVERY_PROBE and n < COUPLING_GROWTH * self._coupled:
            return {}
        if not any(COUPLED in row for row in training):
            return {}
        self._coupled = n
        found: dict[str, float] = {}
        means = logged_means(next(iter(self.histories.values())).steps, training, COUPLED)
        for family, history in self.histories.items():
            mine = means_coupling_scalars(history.steps, history.newly_active(), history.turnover(), means, COUPLED)
            found |= {f"{family}/{key}": value for key, value in mine.items()}
        return found

    # --- warnings ---------------------------------------------------------------------------------------------------

    def _warn_of(self, raised: list[Alert]) -> None:
        """Log the first alert of each kind to the console; all of them are in the record."""
        for alert in raised:
            if alert.kind not in self._warned:
                self._warned.add(alert.kind)
                logger.warning("headwatch, step %d: %s", alert.step, alert.text)

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
