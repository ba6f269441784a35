"""The passes of a probe on this process's pairs: the scores, and exact patching of the heads of events."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headwatch.analysis.event_patching import HeadsByFamily
from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.base_kl import AnswerObserver
from headwatch.attribution.per_family import Metrics, score_by_metric
from headwatch.attribution.settings import ScoringSettings
from headwatch.model.anatomy import Anatomy
from headwatch.model.whole_weights import whole_weights
from headwatch.monitor.console import ProbeProgress, patching_bar, say
from headwatch.monitor.distributed import from_main
from headwatch.monitor.run_budget import RunBudget
from headwatch.monitor.run_graphs import RunGraphs
from headwatch.monitor.run_kernels import RunKernels
from headwatch.monitor.sharded_scoring import PairShard
from headwatch.probes import ProbeSet


class ProbePass:
    """Scores the pairs of a run at each probe, and patches heads; every process must call each method.

    Args:
        settings: of the scores.
        metrics: the metric of each family.
        patching: whether heads of events are patched; a failure turns patching off, not probing.
        shows_bars: whether long passes have progress bars.
        is_main: whether this is the main process, which prints lines.
        edges_on_device: whether edges of single pairs stay on the model's device.

    Attributes:
        kernels: which kernels the passes use.
        budget: their memory budget.
        graphs: their CUDA graphs.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        metrics: Metrics,
        patching: bool,
        shows_bars: bool,
        is_main: bool,
        edges_on_device: bool = False,
    ) -> None:
        self.metrics, self.kernels, self.budget = metrics, RunKernels(), RunBudget()
        self._settings, self._patching, self._shows_bars, self._is_main = settings, patching, shows_bars, is_main
        self._edges_on_device = edges_on_device
        self.graphs = RunGraphs(settings.cuda_graphs, is_main)

    def score(
        self, probes: ProbeSet, model: Any, optimizer: Any, observer: AnswerObserver | None, step: int
    ) -> tuple[PairShard, HeadScores | EdgeScores | None, Exception | None]:
        """Score this process's pairs, with kernels where the run uses them.

        Returns:
            The pairs, which are all where layers are gathered one at a time, and their scores, or what was raised.
        """
        share = PairShard.of(len(probes))
        own = probes.select(list(share.rows)) if share.split else probes
        self.kernels.decide(
            model,
            own,
            self.metrics,
            self._settings,
            optimizer,
            with_budget=lambda: self._with_budget(model, own, optimizer),
        )
        found = self._score(share, probes, model, optimizer, observer, step)
        if self.kernels.falls_back(found[2]):
            found = self._score(share, probes, model, optimizer, observer, step)
        return found

    def patch(
        self, probes: ProbeSet, heads: HeadsByFamily | None, share: PairShard, model: Any, optimizer: Any, step: int
    ) -> tuple[Tensor, float] | None:
        """Patch heads exactly.

        Args:
            probes: all pairs.
            heads: heads of each family; the main process's count.
            share: the pairs of this process.
            model: the model.
            optimizer: the trainer's.
            step: the trainer's global step.

        Returns:
            The effects of all pairs, [N, L, H], NaN for other heads, and the seconds; None if nothing was patched.
        """
        if not self._patching or not (heads := from_main(heads)):
            return None
        began, families = time.perf_counter(), probes.families
        n_effects = sum(len(heads.get(families[row], ())) for row in share.rows)
        with whole_weights(model, optimizer), patching_bar(step, n_effects, self._shows_bars) as bar:
            budget = self._settings.memory_budget_gb
            effects = share.patch(model, probes, self.metrics, heads, budget, optimizer, bar.update)
        self._patching = effects is not None
        return None if effects is None else (effects, time.perf_counter() - began)

    def _score(
        self,
        share: PairShard,
        probes: ProbeSet,
        model: Any,
        optimizer: Any,
        observer: AnswerObserver | None,
        step: int,
    ) -> tuple[PairShard, HeadScores | EdgeScores | None, Exception | None]:
        progress, error = None, None
        try:
            # Gathered once: ranks may run different numbers of passes inside. Layer by layer: all run the same passes.
            with whole_weights(model, optimizer, Anatomy.of(model).decoder_layers) as whole:
                if not whole:
                    share = self._unshared(len(probes))
                own = probes.select(list(share.rows)) if share.split else probes
                settings = self._with_budget(model, own, optimizer, whole)
                progress = ProbeProgress(observer, f"headwatch probe, step {step}", len(share.rows), self._shows_bars)
                scores = share.score(
                    score_by_metric,
                    model,
                    probes,
                    metrics=self.metrics,
                    settings=settings,
                    optimizer=optimizer,
                    observe=progress,
                    kernel_parts=self.kernels.parts,
                    edges_on_device=self._edges_on_device,
                    graphs=self.graphs.of(model),
                )
            return share, scores, None
        except Exception as caught:
            error = caught
            return share, None, caught
        finally:
            self.graphs.after_pass(error)
            if progress is not None:
                progress.close()

    def _with_budget(self, model: Any, own: ProbeSet, optimizer: Any, whole: bool = True) -> ScoringSettings:
        """The settings with the memory budget that all ranks agreed on at the first probe; own: this rank's pairs."""
        return self.budget.settings(self._settings, model, own, self.metrics, optimizer, whole)

    def to_record(self) -> dict[str, Any]:
        """What the manifest says of the passes, where it has changed."""
        found = {
            "kernels": self.kernels.to_record(),
            "memory_budget": self.budget.to_record(),
            "cuda_graphs": self.graphs.to_record(),
        }
        return {key: entry for key, entry in found.items() if entry is not None}

    def resume(self, manifest: Mapping[str, Any]) -> None:
        """Go on as the run began, on the main process."""
        self.kernels = RunKernels(manifest.get("kernels") or {"parts": []})
        self.budget = RunBudget(manifest.get("memory_budget"))

    def _unshared(self, n_pairs: int) -> PairShard:
        """The pairs where layers are gathered one at a time: all of them on every process, without exact patching."""
        if self._patching and self._is_main:
            say("the whole weights do not fit: probes gather layer by layer, without exact patching of events")
        self._patching = False
        return PairShard.of(n_pairs, shared=False)
