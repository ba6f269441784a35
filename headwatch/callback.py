"""HeadWatchCallback: connects the probes, the record and the sinks to a trainer's events."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.base_kl import AnswerObserver, BaseAnswers
from headwatch.attribution.per_family import described
from headwatch.attribution.settings import ScoringSettings
from headwatch.circuits.circuit import CircuitSettings
from headwatch.errors import StartError, UnsupportedModelError, UserError
from headwatch.lives.history import HeadHistory
from headwatch.model.anatomy import Anatomy
from headwatch.model.collectives import LIMIT, LostProcessError, set_limit
from headwatch.model.placement import check_parallelism, parallelism
from headwatch.model.read_only import left_trace
from headwatch.monitor.alerts import AlertSettings
from headwatch.monitor.console import print_above_bars, say, say_closed, say_opened
from headwatch.monitor.distributed import ERROR, OK, USER_ERROR, agree, from_main, on_main
from headwatch.monitor.family_choice import FamilyChoice
from headwatch.monitor.manifest import manifest_of
from headwatch.monitor.probe_pass import ProbePass
from headwatch.monitor.probe_result import ProbeResult
from headwatch.monitor.probe_setup import ProbeSpec, metrics_of
from headwatch.monitor.probe_timer import ProbeTimer
from headwatch.monitor.recorder import Recorder
from headwatch.monitor.resume import check_same_run, find_record, truncate_record, write_sidecar
from headwatch.monitor.settings import WatchSettings, recorded
from headwatch.monitor.sharded_scoring import PairShard
from headwatch.monitor.worker import join_all
from headwatch.probes import Openers, ProbeSet
from headwatch.record.base_answers import load_base_answers, save_base_answers
from headwatch.record.layout import FORMAT
from headwatch.record.owner import Claim, claim
from headwatch.record.run_folder import RunFolder, describe_probes
from headwatch.sinks import Sink, make_sinks
from headwatch.stats import EvidenceSettings
from headwatch.version import __version__

logger = logging.getLogger(__name__)


class HeadWatchCallback(TrainerCallback):
    """Monitor the attention heads of a model while it trains: add it to a Trainer's callbacks.

    At step 0, every `every` steps and at the end, one attribution pass scores all heads and edges on a frozen set of
    probe pairs; training itself stays bit-identical. The results go to {output_dir}/headwatch/ and to a live W&B run.

    A mistake in an option raises UserError before the first step. Everything else that fails (an unsupported model, a
    full disk, NaN, a failing probe) turns probing off with one warning, and the training continues.

    >>> trainer = GRPOTrainer(..., callbacks=[HeadWatchCallback(every=100)])        # doctest: +SKIP

    Args:
        probes: a ProbeSet, a family's name or a list of names, the path of a file of pairs, or None (or "auto"): a
            look at a few pairs of the built-in families when training begins takes those with signal on this model.
            The family "openers" is made from questions when training begins.
        every: optimizer steps between probes.
        max_overhead: largest time of a probe as a share of the training time since the last one (0.02: 2 %). Probes
            that would take longer are put off, in multiples of `every`; the base and the last one are always taken.
            None does not limit it.
        n_pairs: pairs per family, when families are named.
        seed: seed of the generated pairs and of the bootstrap.
        tokenizer: tokenizer of the generated pairs; None is the trainer's.
        scoring: how heads and edges are scored (`ScoringSettings`): metric, steps, alphas, edges, batch_size,
            memory_budget_gb, kernels, cuda_graphs.
        circuit: the paper's circuit rule (`CircuitSettings`): top_n, tau.
        evidence: the rule of events and headlines (`EvidenceSettings`): q, min_change, carry, keep, ...
        openers: how the pairs of the family "openers" are made and read (`Openers`): questions, source, tokens, ...
        alerts: thresholds of the alerts (`AlertSettings`): min_drop, window, ...
        patching: exact patching of events: "events" (the heads of new events, at most at the cost of the scores, and
            the strongest heads at the base probe, at most at three times that), "all" (no limit) or "none".
        folder: the run folder; None is {output_dir}/headwatch.
        report_to: services that show the probes, in addition to the run folder. "auto": the live W&B run, and trackio
            or tensorboard if the trainer reports to them; "none"; or names out of wandb, trackio and tensorboard.
        wandb: "auto" logs to the W&B run that is live, whoever started it; "start" starts one if there is none (a
            resumed training continues the run that it began); "off" logs nothing there.
        strict: raise when a probe fails instead of turning probing off.

    Each of scoring, circuit, evidence, openers and alerts may be given as a dict of its fields, as in a recipe:
    ``evidence={"q": 0.05}``.

    Raises:
        UserError: an argument is not valid.
    """

    def __init__(
        self,
        probes: ProbeSet | str | Sequence[str] | PathLike[str] | None = None,
        every: int = 100,
        *,
        max_overhead: float | None = None,
        n_pairs: int = 64,
        seed: int = 0,
        tokenizer: Any = None,
        scoring: ScoringSettings | Mapping[str, Any] | None = None,
        circuit: CircuitSettings | Mapping[str, Any] | None = None,
        evidence: EvidenceSettings | Mapping[str, Any] | None = None,
        openers: Openers | Mapping[str, Any] | None = None,
        alerts: AlertSettings | Mapping[str, Any] | None = None,
        patching: str = "events",
        folder: str | PathLike[str] | None = None,
        report_to: str | Sequence[str] = "auto",
        wandb: str = "auto",
        strict: bool = False,
    ) -> None:
        given: dict[str, Any] = {
            **{"probes": probes, "every": every, "max_overhead": max_overhead, "n_pairs": n_pairs, "seed": seed},
            **{"scoring": scoring, "circuit": circuit, "evidence": evidence, "openers": openers, "alerts": alerts},
            **{"patching": patching, "folder": folder, "report_to": report_to, "wandb": wandb, "strict": strict},
        }
        self.settings = WatchSettings(**given)
        self._tokenizer = tokenizer
        self._reset()

    @classmethod
    def from_settings(cls, settings: WatchSettings, tokenizer: Any = None) -> "HeadWatchCallback":
        """The callback of settings that are complete, as a recipe's are."""
        return cls(tokenizer=tokenizer, **{each.name: getattr(settings, each.name) for each in fields(settings)})

    def _reset(self) -> None:
        self._recorded: dict[str, Any] = {}  # the settings as the manifest has them
        self.probes: ProbeSet | None = None
        self._choice: FamilyChoice | None = None  # where no probes were named
        self._recorder: Recorder | None = None  # on the main process
        self._sinks: list[Sink] = []
        self._base: BaseAnswers | None = None
        self._pass: ProbePass | None = None
        self._timer = ProbeTimer(self.settings.max_overhead)
        self._put_off = False  # since the last probe
        self._probed: int | None = None
        self._has_probe = False  # whether a probe is in the record
        self._failed = False  # here
        self._off = False  # everywhere, by agreement
        self._sidecar_warned = False
        self._claim: Claim | None = None  # on the main process

    @property
    def run(self) -> RunFolder | None:
        """The record, with the last probe; None before training begins and on all processes but the main one."""
        return None if self._recorder is None else self._idle(self._recorder).run

    @property
    def histories(self) -> dict[str, HeadHistory]:
        """Family -> history by the evidence rule, on the main process."""
        return {} if self._recorder is None else self._recorder.histories

    @property
    def circuits(self) -> dict[str, HeadHistory]:
        """Family -> history by the circuit rule, on the main process."""
        return {} if self._recorder is None else self._idle(self._recorder).circuits

    @staticmethod
    def _idle(recorder: Recorder) -> Recorder:
        """The recorder once its worker has no job; an exception of the job is kept."""
        recorder.join()
        return recorder

    # --- the trainer's events ---------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the probe set, open the record, take the base probe (or go on with the record of a resumed run)."""
        self._reset()
        print_above_bars()
        error: Exception | None = None
        try:
            self._begin(args, state, **kwargs)
        except Exception as caught:
            error = caught
        if not self._all_fine(error, state.global_step, "headwatch could not start"):
            return
        last, has_base = from_main((self._probed, self._base is not None))
        if last is not None:  # a resumed run has its base already
            self._probed = last
            self._base = from_main(self._base) if has_base else None
            self._has_probe = True
            self._timer.start_training()
        else:
            self._probe(state, **kwargs)
        if self._recorder is not None and not self._off:
            recorder, is_new = self._recorder, last is None
            say_opened(recorder.run, self.settings.every, recorder.seconds, recorder.patching_seconds * is_new)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Record what the trainer logs (reward, loss), on the step axis of the probes."""
        self._check_claim(state)
        if logs and self._recorder is not None:
            recorder = self._recorder
            self._guarded(lambda: recorder.log(state.global_step, logs), state, "could not record the trainer's log")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Probe every `every` steps and at the end; all processes decide alike."""
        step = state.global_step
        if step >= state.max_steps > 0 or (step % self.settings.every == 0 and self._is_due(step)):
            self._probe(state, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the record of the checkpoint, and write a sidecar into it that names the record."""
        self._wait(state)
        if self._recorder is None or self._sidecar_warned:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            write_sidecar(checkpoint, self._recorder.run, state.global_step, self._probed)
        except Exception as error:  # resuming works without it, by the record in its usual place
            self._sidecar_warned = True
            logger.warning("headwatch: no sidecar could be written into %s (%s)", checkpoint, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Probe the final weights, if training ended before its last step, and close the record."""
        if self._probed != state.global_step:
            self._probe(state, **kwargs)
        self._wait(state)
        if self._recorder is not None:
            recorder, status = self._recorder, "failed" if self._failed else "finished"
            self._guarded(lambda: recorder.run.update_manifest(status=status), state, "could not close the record")
            self._guarded(lambda: recorder.finish(self._sinks), state, "could not show the last probe")
            self._guarded(lambda: say_closed(recorder.run), state, "could not read the record")
        for sink in self._sinks:
            self._guarded(sink.finish, state, f"could not finish {type(sink).__name__}")
        if self._claim is not None:
            self._claim.release()

    def on_scores(self, step: int, scores: HeadScores | EdgeScores) -> None:
        """For subclasses: called on every process with the scores of all pairs, before they are recorded.

        If several processes share the pairs, only the main one has edge scores; the others get head scores. A subclass
        with its own method gets the edges of every pair on the CPU; without one they stay on a CUDA device.
        """

    # --- beginning --------------------------------------------------------------------------------------------------

    def _begin(self, args: Any, state: Any, model: Any, processing_class: Any = None, **kwargs: Any) -> None:
        set_limit(float(getattr(args, "ddp_timeout", None) or LIMIT))
        shows_bars = state.is_world_process_zero and not getattr(args, "disable_tqdm", False)
        check_parallelism(parallelism())
        anatomy = Anatomy.of(model)
        shape = (anatomy.n_layers, anatomy.n_heads)
        tokenizer = self._tokenizer or getattr(processing_class, "tokenizer", processing_class)
        folder = self.settings.folder
        path = Path(folder) if folder is not None else Path(args.output_dir) / "headwatch"
        on_main(lambda: self._claim_record(path, state))
        resumed: RunFolder | None = None
        if state.global_step > 0:  # the record is the main process's alone
            resumed = on_main(lambda: find_record(args, state.global_step, path))
        spec = ProbeSpec.of(self.settings)
        if tokenizer is None and (self.settings.probes is None or self.settings.families):
            raise StartError(
                "probe pairs need a tokenizer, and the trainer has no processing_class: give "
                "HeadWatchCallback(tokenizer=...) or a ProbeSet"
            )
        spec, self._choice = spec.chosen(self.settings, tokenizer, model, kwargs.get("optimizer"), resumed, shows_bars)
        if self._choice is not None and self._choice.looks and state.is_world_process_zero:
            say(self._choice.line)
        self.probes = spec.freeze(tokenizer, model, kwargs.get("optimizer"), resumed)
        metrics = metrics_of(self.probes, self.settings.scoring.metric, self.settings.openers)
        self._recorded = recorded(self.settings, described(metrics), spec.has_openers)
        patching, is_main = self.settings.patching != "none", state.is_world_process_zero
        pairs_asked = type(self).on_scores is not HeadWatchCallback.on_scores
        self._pass = ProbePass(self.settings.scoring, metrics, patching, shows_bars, is_main, not pairs_asked)
        if not state.is_world_process_zero:
            return
        if resumed is not None:
            check_same_run(resumed, self.probes, shape, self._recorded)
            run = resumed
        else:
            described_probes = describe_probes(self.probes, tokenizer)
            if self._choice is not None:
                described_probes["chosen_by_look"] = self._choice.to_json()
            run = RunFolder.create(path, manifest_of(args, model, anatomy, self._recorded, described_probes))
            self._save_probes(path / "probes.safetensors")
        circuit = self.settings.circuit
        rule = (circuit.top_n, circuit.tau, self.settings.seed) if self.settings.scoring.edges else None
        recorder = Recorder(
            run, self.probes, shape, self.settings.evidence, rule, self.settings.alerts, self.settings.patching
        )
        earlier = run.manifest.get("wandb") or {}
        if resumed is not None:
            self._probed = truncate_record(run, state.global_step, self.settings.every)
            recorder.restore()
            self._base = load_base_answers(run.path)
            self._pass.resume(run.manifest)
            run.update_manifest(format=FORMAT, status="running")
        self._recorder = recorder
        config = {"version": __version__, **self._recorded}
        config |= {key: run.manifest["probes"].get(key) for key in ("families", "n_pairs", "fingerprint")}
        self._sinks = make_sinks(self.settings.sinks, self.settings.wandb, args, config=config, wandb_run=earlier)

    def _save_probes(self, path: Path) -> None:
        assert self.probes is not None
        try:
            self.probes.save(path)
        except UserError as error:  # a full disk, which is no mistake in an option
            raise StartError(str(error)) from error

    def _claim_record(self, path: Path, state: Any) -> None:
        join_all()  # an earlier training of this process may have ended amid a job
        self._claim = claim(path, state)

    def _check_claim(self, state: Any) -> None:
        """Fail if a later training of this process has taken the record over."""
        if self._claim is not None and not self._claim.is_held and not self._failed:
            self._fail(
                StartError(f"another training now writes the record in {self._claim.folder}"),
                state.global_step,
                "the record was taken over",
            )
            self._recorder = None

    # --- probing ----------------------------------------------------------------------------------------------------

    def _probe(self, state: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        """One probe, on every process. All agree on whether one has failed before they exchange anything."""
        if self._off or self.probes is None or self._pass is None or model is None:
            return
        self._check_claim(state)
        self._wait(state)
        if agree(ERROR if self._failed else OK) != OK:  # a record may fail on the main process alone
            self._off = True
            return
        step, probes = state.global_step, self.probes
        first = self._probed is None
        self._probed, self._put_off = step, False
        self._timer.start_probe()
        observer = None
        if first or self._base is not None:
            observer = AnswerObserver(self._base, len(probes), probes.read_positions.shape[1])
        share, part, error = self._pass.score(probes, model, optimizer, observer, step)
        if not self._all_fine(error, step, "the probe failed"):
            return
        assert part is not None
        result: ProbeResult | None = None
        try:
            scores = share.gather(part, probes, self._pass.metrics)
            kl = self._answers(share, observer)
            self.on_scores(step, scores)
            if self._recorder is not None:
                result = self._recorder.update(step, scores, kl)
        except Exception as caught:
            error = caught
        if not self._all_fine(error, step, "the probe failed"):
            return
        try:
            to_patch = None if result is None else result.to_patch
            patched = self._pass.patch(probes, to_patch, share, model, optimizer, step)
            if self._recorder is not None and result is not None:
                if patched is not None:
                    self._recorder.add_patched(result, *patched)
                if changed := self._pass.to_record():
                    self._recorder.run.update_manifest(**changed)
                if first and self._base is not None:  # before the scores, so that no probe is on disk without its base
                    save_base_answers(self._base, self._recorder.run.path)
                self._recorder.conclude(result, self._timer, self._sinks, final=step >= state.max_steps)
                if first or self.settings.strict:  # what fails at the beginning is reported there
                    self._recorder.wait()
        except Exception as caught:
            error = caught
        self._has_probe = self._all_fine(error, step, "the probe failed") or self._has_probe
        self._timer.end_probe()

    def _wait(self, state: Any) -> None:
        """Wait until the last probe is in the record, which is written on the main process."""
        if self._recorder is not None:
            self._guarded(self._recorder.wait, state, "could not record the last probe")

    def _is_due(self, step: int) -> bool:
        """Whether max_overhead allows a probe now, by the main process's clock."""
        if self.settings.max_overhead is None or self._off:
            return True
        due: bool = from_main(self._timer.is_due())
        if not due and not self._put_off:
            self._put_off = True
            if self._recorder is not None:
                logger.warning("headwatch, step %d: %s.", step, self._timer.describe(step - (self._probed or 0)))
        return due

    def _answers(self, share: PairShard, observer: AnswerObserver | None) -> Any:
        """KL from the base, [N]; the base probe itself stores its answers."""
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
        """Whether no process has failed; a failure turns probing off on all of them."""
        mine = OK if error is None else USER_ERROR if isinstance(error, UserError) else ERROR
        worst = agree(mine)
        if worst == OK:
            return True
        self._off = True
        if error is None:
            other = "another process failed: see its message"
            error = UserError(other) if worst == USER_ERROR else RuntimeError(other)
        self._fail(error, step, what)
        return False

    def _fail(self, error: Exception, step: int, what: str) -> None:
        """Turn probing off with one warning.

        Raises:
            Exception: `error` itself, if strict, if the pass left a trace in the model, if another process is lost, or
                if it is a mistake in an option (pairs without answers, a record of other pairs) found before the first
                probe is recorded.
        """
        mistake = isinstance(error, UserError) and not isinstance(error, UnsupportedModelError)
        ends = isinstance(error, LostProcessError) or left_trace(error)
        if self.settings.strict or ends or (mistake and not self._has_probe):
            raise error
        if self._failed:  # one warning for one fault
            return
        self._failed = True
        logger.warning(
            "headwatch, step %d: %s; probing is off for the rest of this run, training continues "
            "(%s: %s). Pass strict=True for the traceback.",
            step,
            what,
            type(error).__name__,
            error,
        )
