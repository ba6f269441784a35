"""Update histories, write the run folder, then log to the sinks, after each probe."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwatch.analysis.event_patching import HeadsByFamily, heads_to_patch
from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.base_kl import mean_by_family
from headwatch.circuits.circuit import Graph
from headwatch.circuits.stability import (
    CircuitHeads,
    circuits_of_pairs,
    mean_over_pairs,
    real_edges,
    whole_matrix,
)
from headwatch.errors import StartError
from headwatch.lives.events import Event
from headwatch.lives.exact_patching import CONTRADICTS
from headwatch.lives.history import HeadHistory
from headwatch.lives.reward_coupling import logged_means, means_coupling_scalars
from headwatch.monitor.alert_rules import find_alerts
from headwatch.monitor.alerts import DEFAULTS, WARNING, Alert, AlertSettings, alert_scalars
from headwatch.monitor.console import say_events
from headwatch.monitor.probe_timer import ProbeTimer
from headwatch.probes import ProbeSet
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.replay import histories_from_run, lost_probes
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, plotly, sentences
from headwatch.sinks import Notice, Sink
from headwatch.stats import EvidenceSettings

logger = logging.getLogger(__name__)

Patch = Callable[[HeadsByFamily], Tensor]
"""patch(heads of each family) -> exact effects [N, L, H], NaN for other heads."""

COUPLED = "reward"  # the logged value whose correlation with the heads is tested
EVERY_PROBE, COUPLING_GROWTH = 50, 1.05  # at which probes it is


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
        to_patch: heads to patch exactly, by family.
        patched: exact effects of these heads, [N, L, H]; NaN for others, None if nothing is patched.
    """

    step: int
    heads: HeadScores
    kl: Tensor | None
    scalars: dict[str, Any]
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


class Recorder:
    """One run's histories and its record, on the main process.

    Args:
        run: the run folder.
        probes: the probe set.
        shape: layers and heads.
        evidence: settings of the evidence rule.
        circuit_rule: top_n, tau and seed of the paper's circuit rule; None if edges are not scored.
        thresholds: alert thresholds.
        patching: see `WatchSettings`.

    Attributes:
        histories: family -> HeadHistory by the evidence rule.
        circuits: family -> HeadHistory by the circuit rule; empty if edges are not scored.
        training: rows of the trainer's log.
        seconds: time of the last probe; None before the first one.
    """

    def __init__(
        self,
        run: RunFolder,
        probes: ProbeSet,
        shape: tuple[int, int],
        evidence: EvidenceSettings,
        circuit_rule: tuple[float, float | None, int] | None,
        thresholds: AlertSettings = DEFAULTS,
        patching: str = "none",
    ) -> None:
        self._patching = patching
        self.run, self.probes, self.thresholds = run, probes, thresholds
        self._rule = circuit_rule
        names = probes.family_names
        layers = run.manifest["model"].get("layers_with_heads")

        def empty(family: str, rule: str) -> HeadHistory:
            return HeadHistory(*shape, rule=rule, settings=evidence, family=family, layers=layers)

        self.histories = {name: empty(name, "evidence") for name in names}
        self.circuits = {name: empty(name, "circuit") for name in names if circuit_rule}
        self.training: list[dict[str, Any]] = []
        self.seconds: float | None = None
        self._has_reward, self._coupled = False, 0
        self._correct: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
        self._warned: set[str] = set()
        self._noticed: set[tuple[str, str]] = set()  # kind and family of the alerts that the sinks were sent
        self._last: ProbeResult | None = None  # the last probe of the run, shown when training has ended
        self._linked = False  # whether the manifest names the W&B run

    def restore(self) -> None:
        """Restore the histories from the run folder, to continue them; each probe's file is read once."""
        self.training = self.run.training()
        self.seconds = next((row["seconds"] for row in reversed(self.run.scalars()) if row.get("seconds")), None)
        self._has_reward = any(COUPLED in row for row in self.training)
        rules = {family: ("evidence", "circuit")[: 1 + (family in self.circuits)] for family in self.histories}
        lost: dict[int, str] = {}
        found = histories_from_run(self.run, rules, self._restore_correct, lost=lost)
        self.histories = {family: found[family, "evidence"] for family in self.histories}
        self.circuits = {family: found[family, "circuit"] for family in self.circuits}
        steps = next(iter(self.histories.values())).steps
        if lost and steps and min(lost) < min(steps):
            raise StartError(
                f"{lost_probes(steps, lost)}: events need the base that the run began with; move {self.run.path} away "
                "to begin a new record"
            )
        if lost:
            logger.warning("headwatch: %s", lost_probes(steps, lost))

    def _restore_correct(self, family: str, correct: np.ndarray[Any, Any] | None) -> None:
        if correct is not None:
            self._correct[family].append(correct)

    def log(self, step: int, logs: dict[str, Any]) -> None:
        """Record what the trainer logged."""
        self.training.append({**logs, "step": step})
        self._has_reward |= COUPLED in logs
        self.run.append_training(step, logs)

    def probe(
        self,
        step: int,
        scores: EdgeScores | HeadScores,
        kl: Tensor | None,
        timer: ProbeTimer,
        sinks: Sequence[Sink],
        final: bool,
        patch: Patch | None = None,
    ) -> None:
        """Process one probe: `update`, `add_patched` and `conclude`.

        Args:
            step: the trainer's global step.
            scores: of all pairs.
            kl: KL from the base model, [N]; None without a base.
            timer: times this probe.
            sinks: where the probe is shown.
            final: whether it is the last probe of the run.
            patch: patches heads exactly; None patches nothing.
        """
        result = self.update(step, scores, kl)
        if patch is not None and result.to_patch:
            self.add_patched(result, patch(result.to_patch))
        self.conclude(result, timer, sinks, final)

    def update(self, step: int, scores: EdgeScores | HeadScores, kl: Tensor | None) -> ProbeResult:
        """Add a probe to the histories; `to_patch` of the result names the heads to patch exactly."""
        result = self._update_histories(step, scores, kl)
        passes = 2.0 * result.heads.steps  # a point of the path costs a forward and a backward pass
        to_patch = {name: heads_to_patch(h, self._patching, passes) for name, h in self.histories.items()}
        result.to_patch = {family: heads for family, heads in to_patch.items() if heads}
        return result

    def add_patched(self, result: ProbeResult, effects: Tensor, seconds: float = 0.0) -> None:
        """Complete the events of a probe with the exact effects of their heads, [N, L, H], NaN for other heads."""
        result.patched = effects
        families, readings = np.array(result.heads.families), result.heads.readings
        for family in result.to_patch:
            rows, history = families == family, self.histories[family]
            clean, corrupted = (x.numpy()[rows] for x in (readings.metric_clean, readings.metric_corrupted))
            known = {(e.layer, e.head): e for e in history.add_patched(effects.numpy()[rows], clean, corrupted)}
            result.events = [
                known.get((e.layer, e.head), e)
                if (e.family, e.step, e.rule) == (family, result.step, "evidence")
                else e
                for e in result.events
            ]
        result.scalars["patching_seconds"] = seconds

    def conclude(self, result: ProbeResult, timer: ProbeTimer, sinks: Sequence[Sink], final: bool) -> None:
        """Add the alerts, write the record, then log to the console and the sinks."""
        self._add_alerts(result)
        if self._patching != "none":
            result.scalars.setdefault("patching_seconds", 0.0)
            for family, history in self.histories.items():
                verdicts = [event.patching for event in history.events if event.patching is not None]
                result.scalars[f"{family}/events_patched"] = len(verdicts)
                result.scalars[f"{family}/events_contradicted"] = verdicts.count(CONTRADICTS)
        result.scalars |= _cost(result.heads, timer)
        self._write(result)
        self.seconds = result.scalars["seconds"]
        say_events(result.step, result.events)
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
        graph = strength = None
        if isinstance(scores, EdgeScores):
            graph = Graph(scores.sources, scores.targets, scores.is_real.numpy())
            strength = real_edges(scores.per_pair, graph)
        for family in self.histories:
            self._update_history(family, heads.select(family), result)
            if graph is not None and strength is not None:
                rows = [row for row, name in enumerate(heads.families) if name == family]
                self._update_circuit(family, strength[consecutive(rows)], graph, result)
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

    def _update_circuit(self, family: str, strength: Tensor, graph: Graph, result: ProbeResult) -> None:
        """Add a family's circuit heads to its history by the circuit rule; strength: its |edge scores|, [N, E]."""
        assert self._rule is not None
        top_n, tau, seed = self._rule
        history, found = self.circuits[family], circuits_of_pairs(strength, graph, top_n, tau, seed=seed)
        result.events += history.add_membership(
            result.step, found.active, found.importance, found.stability, found.importance_draws
        )
        latest = history.latest_scalars() | found.scalars()
        result.scalars |= {f"{family}/circuit/{key}": value for key, value in latest.items()}
        result.circuits.append(found)
        result.edges_mean_abs.append(whole_matrix(mean_over_pairs(strength), graph))

    def _add_alerts(self, result: ProbeResult) -> None:
        """Add the alerts and the coupling with the reward; if one of them fails, the probe is recorded without it."""
        result.alerts = self._or_warn(lambda: self._alerts(result), "the alerts") or []
        result.scalars |= self._or_warn(self._coupling, "the reward coupling") or {}
        result.scalars |= alert_scalars(result.alerts)

    def _alerts(self, result: ProbeResult) -> list[Alert]:
        checks = _checks(result.heads)
        return find_alerts(self.histories.values(), checks, self._correct, self.training, self.thresholds)

    def _coupling(self) -> dict[str, float]:
        """Correlation of the heads with the reward. Its cost grows with the number of probes, so it is computed at ever
        fewer of them: after the first 50, whenever their number has grown by 5 %.
        """
        n = len(next(iter(self.histories.values())).steps)
        if not self._has_reward or (n > EVERY_PROBE and n < COUPLING_GROWTH * self._coupled):
            return {}
        self._coupled = n
        found: dict[str, float] = {}
        means = logged_means(next(iter(self.histories.values())).steps, self.training, COUPLED)
        for family, history in self.histories.items():
            mine = means_coupling_scalars(history.steps, history.newly_active(), history.turnover(), means, COUPLED)
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
        # A sink computes and draws what it shows of this in its own thread while training continues.
        histories = {family: history.snapshot() for family, history in self.histories.items()}
        training, rows, correct = self.training, len(self.training), self._correct

        def draw() -> dict[str, Any]:
            return _drawn({f: figure_data.all_figures(h, training[:rows]) for f, h in histories.items()})

        def summary() -> dict[str, str]:
            answers = {family: own[: len(histories[family].steps)] for family, own in correct.items()}
            return summary_lines(histories, answers)

        more: dict[str, Any] = {"texts": texts, "final": final, "notices": self._notices(result.alerts)}
        more["summary"] = summary
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
        return summary_lines(self.histories, self._correct)

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


def summary_lines(
    histories: Mapping[str, HeadHistory], correct: Mapping[str, Sequence[np.ndarray[Any, Any]]]
) -> dict[str, str]:
    """Each family's result in a few words; correct: which pairs were answered correctly, for each probe."""
    return {
        family: sentences.summary(history, accuracy=[float(c.mean()) for c in correct[family]])["line"]
        for family, history in histories.items()
    }


def consecutive(rows: list[int]) -> slice | list[int]:
    """The rows as a slice if they are consecutive, which copies nothing."""
    if rows and rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return rows


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
