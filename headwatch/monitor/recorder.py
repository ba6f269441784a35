"""One run's histories and its record: a probe updates the histories at once, everything else in a worker."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from headwatch.analysis.event_patching import heads_to_patch
from headwatch.attribution import EdgeScores, HeadScores
from headwatch.errors import StartError
from headwatch.lives.history import HeadHistory
from headwatch.monitor.alerts import DEFAULTS, AlertSettings
from headwatch.monitor.probe_result import ProbeResult
from headwatch.monitor.probe_timer import ProbeTimer
from headwatch.monitor.probe_writer import ProbeWriter, Rules
from headwatch.monitor.worker import Worker
from headwatch.probes import ProbeSet
from headwatch.record.replay import histories_from_run, lost_probes
from headwatch.record.run_folder import RunFolder
from headwatch.sinks import Sink
from headwatch.stats import EvidenceSettings

logger = logging.getLogger(__name__)


class Recorder:
    """One run's histories and its record, on the main process and the training's thread.

    A probe is `wait`, `update`, `add_patched` where heads were patched, and `conclude`, which starts a job of the
    worker (`ProbeWriter.write`). Only `log` may be called between `conclude` and the next `wait`.

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
        circuits: family -> HeadHistory by the circuit rule; empty if edges are not scored. A job changes them.
        training: rows of the trainer's log.
        seconds: time of the last probe; None before the first one.
        patching_seconds: its part for exact patching.
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
        self.run, self._patching, self._circuit_rule = run, patching, circuit_rule
        names = probes.family_names
        layers = run.manifest["model"].get("layers_with_heads")

        def empty(family: str, rule: str) -> HeadHistory:
            return HeadHistory(*shape, rule=rule, settings=evidence, family=family, layers=layers)

        self.histories = {name: empty(name, "evidence") for name in names}
        self.circuits = {name: empty(name, "circuit") for name in names if circuit_rule}
        self.training: list[dict[str, Any]] = []
        self.seconds: float | None = None
        self.patching_seconds = 0.0
        self._correct: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
        rules = Rules(circuit_rule, thresholds, patching)
        self._writer = ProbeWriter(run, rules, self.histories, self.circuits, self._correct)
        self._worker = Worker()
        self._last: ProbeResult | None = None  # the last probe of the run, shown when training has ended

    def restore(self) -> None:
        """Restore the histories from the run folder, to continue them; each probe's file is read once."""
        self.training = self.run.training()
        self.seconds = next((row["seconds"] for row in reversed(self.run.scalars()) if row.get("seconds")), None)
        rules = {family: ("evidence", "circuit")[: 1 + (family in self.circuits)] for family in self.histories}
        lost: dict[int, str] = {}
        found = histories_from_run(self.run, rules, self._restore_correct, lost=lost)
        self.histories.update({family: found[family, "evidence"] for family in self.histories})
        self.circuits.update({family: found[family, "circuit"] for family in self.circuits})
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
        """Record what the trainer logged, also while a job runs: no job writes this file."""
        self.training.append({**logs, "step": step})
        self.run.append_training(step, logs)

    def update(self, step: int, scores: EdgeScores | HeadScores, kl: Tensor | None) -> ProbeResult:
        """Add a probe to the evidence histories; `to_patch` of the result names the heads to patch exactly.

        Args:
            step: the trainer's global step.
            scores: of all pairs.
            kl: KL from the base model, [N]; None without a base.
        """
        edges, heads = (scores, scores.heads) if isinstance(scores, EdgeScores) else (None, scores)
        result = ProbeResult(step, heads, edges, kl)
        passes = 2.0 * heads.steps  # a point of the path costs a forward and a backward pass
        for family, history in self.histories.items():
            own = heads.select(family)
            metric = own.readings.metric_clean.numpy(), own.readings.metric_corrupted.numpy()
            result.events += history.add(step, own.per_pair.numpy(), *metric)
            self._correct[family].append(own.readings.correct.numpy())
        to_patch = {name: heads_to_patch(h, self._patching, passes) for name, h in self.histories.items()}
        result.to_patch = {family: chosen for family, chosen in to_patch.items() if chosen}
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
                known.get((e.layer, e.head), e) if (e.family, e.step) == (family, result.step) else e
                for e in result.events
            ]
        result.scalars["patching_seconds"] = seconds

    def conclude(self, result: ProbeResult, timer: ProbeTimer, sinks: Sequence[Sink], final: bool) -> None:
        """Start the job that completes, records and shows a probe.

        Args:
            result: of `update`.
            timer: times this probe; what it has counted by now is logged.
            sinks: where the probe is shown.
            final: whether it is the last probe of the run, whose figures wait for the trainer's last row.
        """
        if self._circuit_rule is not None and result.edges is not None and result.edges.per_pair.is_cuda:
            result.reduce_edges(self.circuits, *self._circuit_rule)  # now: the training needs the memory
        result.scalars |= result.cost(timer)
        self.seconds, self.patching_seconds = result.scalars["seconds"], result.scalars.get("patching_seconds", 0.0)
        rows, shown = list(self.training), () if final else tuple(sinks)

        def job() -> None:
            self._writer.write(result, rows, shown)
            self._last = result if final else None

        self._worker.submit(job)

    def wait(self) -> None:
        """Wait until the last probe is in the record.

        Raises:
            Exception: it could not be recorded; once.
        """
        self._worker.wait()

    def join(self) -> None:
        """Wait as `wait` does; an exception is kept for it."""
        self._worker.join()

    def finish(self, sinks: Sequence[Sink]) -> None:
        """Show the last probe, now that the trainer has logged its last step."""
        self.join()
        if self._last is not None:
            result, self._last = self._last, None
            self._writer.show(result, list(self.training), sinks, final=True)
