"""HeadWatchCallback: when to probe, and whom to tell. No mathematics."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from headwatch.attribution import EdgeScores, HeadScores, Metric, ScoringSettings
from headwatch.attribution.base_kl import AnswerObserver, BaseAnswers
from headwatch.attribution.metrics import resolve_metric
from headwatch.attribution.path import path_points
from headwatch.attribution.per_family import Metrics, described, score_by_metric
from headwatch.circuits.circuit import TOP_N, validate_rule
from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.model.anatomy import Anatomy
from headwatch.model.read_only import left_trace
from headwatch.monitor.alerts import AlertSettings
from headwatch.monitor.distributed import FAILED, FINE, REFUSED, agree, from_main, is_sharded, on_main, world
from headwatch.monitor.probe_setup import Wanted, metrics_of
from headwatch.monitor.recorder import Recorder
from headwatch.monitor.resume import cut_to, find_record, refuse_another_run, write_sidecar
from headwatch.monitor.sharded_scoring import Share
from headwatch.probes import Openers, ProbeSet
from headwatch.record.base_answers import load_base_answers, save_base_answers
from headwatch.record.run_folder import RunFolder, describe_probes
from headwatch.sinks import Sink, check_report_to, make_sinks
from headwatch.stats import EvidenceSettings
from headwatch.version import __version__, versions

logger = logging.getLogger(__name__)


class HeadWatchCallback(TrainerCallback):
    """Watches the attention heads of the model in training: add it to a Trainer's callbacks.

    At step 0, every `every` steps and at the end, one attribution pass scores all heads and edges on a frozen set of
    probe pairs; training itself is left bit-identical. What it finds goes to {output_dir}/headwatch/ and, when a W&B
    run is live, there too. A probe that fails is reported once and turned off; it never ends the training.

    >>> trainer = GRPOTrainer(..., callbacks=[HeadWatchCallback(every=100)])        # doctest: +SKIP

    Args:
        probes: a ProbeSet, a family name or several, a file, or None for the default families. The family "openers" is
            made from questions when training begins.
        every: optimizer steps between probes.
        n_pairs: pairs a family, when families are named.
        seed: of the generated pairs and of the bootstrap.
        tokenizer: for generated pairs; None takes the trainer's.
        metric: "logit_diff", "kl", "nll", or a callable; the family "openers" has its own.
        openers: what the family "openers" is made of and read by; None is Openers().
        steps: points of the integrated-gradients path.
        alphas: "midpoint", "right" (the paper), "left" or "clean".
        edges: also score edges, which the paper's circuit rule needs; False scores heads only.
        top_n, tau: the paper's circuit rule (see Circuit.select).
        evidence: the numbers of the evidence rule.
        batch_size, memory_budget_gb: see score_heads.
        folder: where the record goes; None is {output_dir}/headwatch.
        report_to: where probes are shown besides the record: "auto" is a live W&B run and what the trainer itself
            reports to (trackio, tensorboard); or "none", or names out of wandb, trackio and tensorboard.
        wandb: "auto" logs to the W&B run that is live, whoever started it; "start" starts one if there is none (a
            resumed training goes on with the run that it began); "off" logs nothing there.
        alerts: the thresholds of the alerts.
        strict: raise when a probe fails instead of turning it off.

    Raises:
        UserError: an option makes no sense (here), or does not fit the model or tokenizer (when training begins).
    """

    def __init__(
        self,
        probes: ProbeSet | str | Sequence[str] | PathLike[str] | None = None,
        every: int = 100,
        *,
        n_pairs: int = 64,
        seed: int = 0,
        tokenizer: Any = None,
        metric: str | Metric = "logit_diff",
        openers: Openers | None = None,
        steps: int = 5,
        alphas: str = "midpoint",
        edges: bool = True,
        top_n: float = TOP_N,
        tau: float | None = None,
        evidence: EvidenceSettings | None = None,
        batch_size: int | None = None,
        memory_budget_gb: float | None = None,
        folder: str | PathLike[str] | None = None,
        report_to: str | Sequence[str] = "auto",
        wandb: str = "auto",
        alerts: AlertSettings | None = None,
        strict: bool = False,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(f"every={every!r} must be a whole number of steps of at least 1 (100 is the default)")
        metric_name, _ = resolve_metric(metric)
        path_points(alphas, steps, metric_name)
        validate_rule(top_n, tau)
        self.every, self.strict = every, strict
        self.evidence = evidence or EvidenceSettings()
        self._wanted = Wanted(probes, n_pairs, seed, openers or Openers())
        if self._wanted.with_openers:
            path_points(alphas, steps, self._wanted.openers.metric)
        self._tokenizer, self._metric = tokenizer, metric
        self._folder = Path(folder) if folder is not None else None
        self._pass: dict[str, Any] = {
            "steps": steps,
            "alphas": alphas,
            "batch_size": batch_size,
            "memory_budget_gb": memory_budget_gb,
        }
        self._edges, self._rule, self._seed = edges, (top_n, tau), seed
        self._settings = {
            **self._pass,
            "metric": metric_name,  # by family, once the families are known, where there are several
            "openers": self._wanted.openers.described() if self._wanted.with_openers else None,
            "every": every,
            "n_pairs": n_pairs,
            "seed": seed,
            "edges": edges,
            "top_n": top_n,
            "tau": tau,
            "evidence": vars(self.evidence),
        }
        self._report_to = check_report_to(report_to, wandb)
        self._wandb = wandb
        self._thresholds = alerts or AlertSettings()
        self._reset()

    def _reset(self) -> None:
        self.probes: ProbeSet | None = None
        self._metrics: Metrics = {}
        self._recorder: Recorder | None = None  # on the main process
        self._sinks: list[Sink] = []
        self._base: BaseAnswers | None = None
        self._probed: int | None = None
        self._told = False  # whether a probe is in the record
        self._failed = False  # here
        self._off = False  # everywhere, by agreement
        self._sidecar_warned = False

    @property
    def run(self) -> RunFolder | None:
        """The record; None before training begins and on all processes but the main one."""
        return None if self._recorder is None else self._recorder.run

    @property
    def histories(self) -> dict[str, HeadHistory]:
        """Family -> history by the evidence rule, on the main process."""
        return {} if self._recorder is None else self._recorder.histories

    @property
    def circuits(self) -> dict[str, HeadHistory]:
        """Family -> history by the circuit rule, on the main process."""
        return {} if self._recorder is None else self._recorder.circuits

    # --- the trainer's events ---------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the probe set, open the record, take the base probe (or go on with the record of a resumed run)."""
        self._reset()
        error: Exception | None = None
        try:
            self._begin(args, state, **kwargs)
        except Exception as caught:
            error = caught
        if not self._all_fine(error, state.global_step, "could not start"):
            return
        last, has_base = from_main((self._probed, self._base is not None))
        if last is not None:  # a resumed run has its base already
            self._probed = last
            self._base = from_main(self._base) if has_base else None
            self._told = True
        else:
            self._probe(state, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep what the trainer logs (reward, loss) beside the probes, on the same steps."""
        if logs and self._recorder is not None:
            recorder = self._recorder
            self._guarded(lambda: recorder.log(state.global_step, logs), state, "could not keep the trainer's log")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Probe every `every` steps and at the end, decided from the step alone so that all processes agree."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps > 0:
            self._probe(state, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave a note in the checkpoint of which record belongs to it."""
        if self.run is None or self._sidecar_warned:
            return
        try:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_sidecar(checkpoint, self.run, state.global_step, self._probed)
        except Exception as error:  # a checkpoint can be resumed from without it: by the record in its place
            self._sidecar_warned = True
            logger.warning("headwatch: no note could be left in %s (%s)", checkpoint, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Probe what training ended with, where it ended before its last step, and close the record."""
        if self._probed != state.global_step:
            self._probe(state, **kwargs)
        if self.run is not None:
            run = self.run
            status = "failed" if self._failed else "finished"
            self._guarded(lambda: run.update_manifest(status=status), state, "could not close the record")
        for sink in self._sinks:
            sink.finish()

    def on_scores(self, step: int, scores: HeadScores | EdgeScores) -> None:
        """For subclasses: called with the whole scores of every probe, on every process, before they are recorded."""

    # --- beginning --------------------------------------------------------------------------------------------------

    def _begin(self, args: Any, state: Any, model: Any, processing_class: Any = None, **kwargs: Any) -> None:
        anatomy = Anatomy.of(model)
        shape = (anatomy.n_layers, anatomy.n_heads)
        tokenizer = self._tokenizer or getattr(processing_class, "tokenizer", processing_class)
        path = self._folder or Path(args.output_dir) / "headwatch"
        resumed: RunFolder | None = None
        if state.global_step > 0:  # the record is the main process's alone
            resumed = on_main(lambda: find_record(args, state.global_step, path))
        self.probes = self._wanted.freeze(tokenizer, model, kwargs.get("optimizer"), resumed)
        self._metrics = metrics_of(self.probes, self._metric, self._wanted.openers)
        self._settings["metric"] = described(self._metrics)
        if not state.is_world_process_zero:
            return
        if resumed is not None:
            refuse_another_run(resumed, self.probes, shape, self._settings, self.evidence)
            run = resumed
        else:
            run = RunFolder.create(path, self._manifest(args, model, anatomy))
            self.probes.save(path / "probes.safetensors")
        rule = (*self._rule, self._seed) if self._edges else None
        recorder = Recorder(run, self.probes, shape, self.evidence, rule, self._thresholds)
        earlier = run.manifest.get("wandb") or {}
        if resumed is not None:
            self._probed = cut_to(run, state.global_step, self.every)
            recorder.restore()
            self._base = load_base_answers(run.path)
            run.update_manifest(status="running")
        self._recorder = recorder
        self._sinks = make_sinks(self._report_to, self._wandb, args, config=self._settings, wandb_run=earlier)

    def _manifest(self, args: Any, model: Any, anatomy: Anatomy) -> dict[str, Any]:
        config = getattr(model, "config", None)
        return {
            "headwatch_version": __version__,
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": self._settings,
            "model": {
                "name": _model_name(model),
                "type": getattr(config, "model_type", ""),
                "n_layers": anatomy.n_layers,
                "n_heads": anatomy.n_heads,
                "n_kv_heads": anatomy.n_kv_heads,
                "head_dim": anatomy.head_dim,
                "d_model": anatomy.d_model,
            },
            "probes": describe_probes(self.probes),
            "trainer": re.sub(r"(Config|TrainingArguments)$", "Trainer", type(args).__name__),
            "name": getattr(args, "run_name", None) or Path(args.output_dir).name,
            "training": {
                key: getattr(args, key, None)
                for key in ("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "seed")
            },
            "wandb": None,
            "status": "running",
        }

    # --- probing ----------------------------------------------------------------------------------------------------

    def _probe(self, state: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        """One probe, on every process. Whether any of them has failed is agreed on before anything is exchanged."""
        if self._off or self.probes is None or model is None:
            return
        if agree(FAILED if self._failed else FINE) != FINE:  # a record may fail on the main process alone
            self._off = True
            return
        step, probes = state.global_step, self.probes
        first = self._probed is None
        self._probed = step
        began = time.perf_counter()
        settings = ScoringSettings(self._metric, edges=self._edges, **self._pass)
        share = Share.of(len(probes), model)
        observer = None
        if first or self._base is not None:
            observer = AnswerObserver(self._base, len(probes), probes.read_positions.shape[1])
        error: Exception | None = None
        try:
            part = share.score(
                score_by_metric,
                model,
                probes,
                metrics=self._metrics,
                settings=settings,
                optimizer=optimizer,
                observe=observer,
            )
        except Exception as caught:
            if world()[1] > 1 and is_sharded(model):  # the others may be waiting inside the pass: no agreeing with them
                raise
            error = caught
        if not self._all_fine(error, step, "failed"):
            return
        try:
            scores = share.gather(part, probes, self._metrics)
            kl = self._answers(share, observer)
            self.on_scores(step, scores)
            if self._recorder is not None:
                if first and self._base is not None:  # before the scores: a probe on disk has its base beside it
                    save_base_answers(self._base, self._recorder.run.path)
                self._recorder.probe(step, scores, kl, began, self._sinks, final=step >= state.max_steps)
        except Exception as caught:
            error = caught
        self._told = self._all_fine(error, step, "failed") or self._told

    def _answers(self, share: Share, observer: AnswerObserver | None) -> Any:
        """The KL from the base, [N]; at the base itself its answers are kept for later."""
        if observer is None:
            return None
        rows = list(share.rows)
        if self._base is None and (own := observer.answers()) is not None:
            tokens = None if own.tokens is None else share.whole(own.tokens[rows])
            self._base = BaseAnswers(share.whole(own.log_probs[rows]), tokens)
        return share.whole(observer.kl[rows])

    # --- when something is wrong ------------------------------------------------------------------------------------

    def _guarded(self, action: Callable[[], Any], state: Any, what: str) -> None:
        try:
            action()
        except Exception as error:
            self._fail(error, state.global_step, what)

    def _all_fine(self, error: Exception | None, step: int, what: str) -> bool:
        """Whether no process has failed; if one has, probing ends on all of them."""
        mine = FINE if error is None else REFUSED if isinstance(error, UserError) else FAILED
        worst = agree(mine)
        if worst == FINE:
            return True
        self._off = True
        if error is None:
            other = "another process could not go on: its message says why"
            error = UserError(other) if worst == REFUSED else RuntimeError(other)
        self._fail(error, step, what)
        return False

    def _fail(self, error: Exception, step: int, what: str) -> None:
        """Turn probing off with one warning; raise only when asked to, or when the model is not as it was.

        What the user can mend (a model that cannot be taken apart, pairs without answers, a record of other pairs)
        shows before anything has been trained, and is raised there too.
        """
        if self.strict or left_trace(error) or (isinstance(error, UserError) and not self._told):
            raise error
        self._failed = True
        logger.warning(
            "headwatch, step %d: the probe %s and is turned off for the rest of this run; training goes on "
            "(%s: %s). Pass strict=True to see where.",
            step,
            what,
            type(error).__name__,
            error,
        )


def _model_name(model: Any) -> str:
    """The name on the Hub, or the folder's own name: a whole path says more about the machine than about the model."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name
