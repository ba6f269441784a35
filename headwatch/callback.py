"""HeadWatchCallback: when to probe, and whom to tell. No mathematics."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from headwatch import __version__
from headwatch.anatomy import Anatomy
from headwatch.attribution import EdgeScores, HeadScores, Metric, score_edges, score_heads
from headwatch.attribution.metrics import path_points, resolve_metric
from headwatch.circuit import TOP_N, CircuitHeads, Graph, circuit_heads, validate_rule
from headwatch.errors import UserError
from headwatch.evidence import EvidenceSettings
from headwatch.guard import left_trace
from headwatch.history import HeadHistory
from headwatch.lives import Event
from headwatch.probes import ProbeSet
from headwatch.run_folder import ProbeScores, RunFolder, describe_probes
from headwatch.sinks import Sink, WandbSink
from headwatch.versions import versions
from headwatch.views import figures, plotly_figures

logger = logging.getLogger(__name__)

# Above these a check says that the scores are not what they should be, whatever the dtype (bf16 measured: 1-2 %).
LIMITS = {"row_sum_error": 0.05, "stream_error": 0.05, "completeness_error": 0.25}


class HeadWatchCallback(TrainerCallback):
    """Watches the attention heads of the model in training: add it to a Trainer's callbacks.

    At step 0, every `every` steps and at the end, one attribution pass scores all heads and edges on a frozen set of
    probe pairs; training itself is left bit-identical. What it finds goes to {output_dir}/headwatch/ and, when a W&B
    run is live, there too. A probe that fails is reported once and turned off; it never ends the training.

    >>> trainer = GRPOTrainer(..., callbacks=[HeadWatchCallback(every=100)])        # doctest: +SKIP

    Args:
        probes: a ProbeSet, a family name or several, a file, or None for the default families.
        every: optimizer steps between probes.
        n_pairs: pairs a family, when families are named.
        seed: of the generated pairs and of the bootstrap.
        tokenizer: for generated pairs; None takes the trainer's.
        metric: "logit_diff", "kl", "nll", or a callable.
        steps: points of the integrated-gradients path.
        alphas: "midpoint", "right" (the paper), "left" or "clean".
        edges: also score edges, which the paper's circuit rule needs; False scores heads only.
        top_n, tau: the paper's circuit rule (see Circuit.select).
        evidence: the numbers of the evidence rule.
        batch_size, memory_budget_gb: see score_heads.
        folder: where the record goes; None is {output_dir}/headwatch.
        wandb: "auto" logs to the W&B run that is live, whoever started it; "start" starts one if there is none;
            "off" logs nothing there.
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
        steps: int = 5,
        alphas: str = "midpoint",
        edges: bool = True,
        top_n: float = TOP_N,
        tau: float | None = None,
        evidence: EvidenceSettings | None = None,
        batch_size: int | None = None,
        memory_budget_gb: float | None = None,
        folder: str | PathLike[str] | None = None,
        wandb: str = "auto",
        strict: bool = False,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(f"every={every!r} must be a whole number of steps of at least 1 (100 is the default)")
        metric_name, _ = resolve_metric(metric)
        path_points(alphas, steps, metric_name)
        validate_rule(top_n, tau)
        self.every, self.strict = every, strict
        self.evidence = evidence or EvidenceSettings()
        self._given = (probes, n_pairs, seed, tokenizer)
        self._folder = Path(folder) if folder is not None else None
        self._pass: dict[str, Any] = {
            "metric": metric,
            "steps": steps,
            "alphas": alphas,
            "batch_size": batch_size,
            "memory_budget_gb": memory_budget_gb,
        }
        self._edges, self._rule, self._seed = edges, (top_n, tau), seed
        self._settings = {
            **self._pass,
            "metric": metric_name,
            "every": every,
            "n_pairs": n_pairs,
            "seed": seed,
            "edges": edges,
            "top_n": top_n,
            "tau": tau,
            "evidence": vars(self.evidence),
        }
        if wandb not in ("auto", "start", "off"):
            raise UserError(f"wandb={wandb!r}: use 'auto' (the run that exists), 'start' (or a new one) or 'off'")
        self._wandb = wandb
        self._reset()

    def _reset(self) -> None:
        self.probes: ProbeSet | None = None
        self.run: RunFolder | None = None
        self.histories: dict[str, HeadHistory] = {}
        self.circuits: dict[str, HeadHistory] = {}
        self._sink: Sink | None = None
        self._training: list[dict[str, Any]] = []
        self._probed: int | None = None
        self._linked = False  # whether the manifest names the W&B run
        self._failed = False
        self._warned: set[str] = set()
        self._main = True

    # --- the trainer's events ---------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze the probe set, open the record, take the base probe (or go on with the record of a resumed run)."""
        self._reset()
        self._main = state.is_world_process_zero
        try:
            self._begin(args, state, **kwargs)
        except UserError:  # nothing has been trained yet, and nothing but the user can mend it
            raise
        except Exception as error:
            self._fail(error, state.global_step, "could not start")
            return
        if self._main and self._wandb != "off":
            self._sink = WandbSink(self._wandb, name=getattr(args, "run_name", None), config=self._settings)
        if self._probed is None:  # a resumed run has its base already
            self._probe(state, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep what the trainer logs (reward, loss) beside the probes, on the same steps."""
        if logs and self._main and self.run is not None:
            run = self.run
            self._training.append({**logs, "step": state.global_step})
            self._guarded(
                lambda: run.append_training(state.global_step, logs), state, "could not keep the trainer's log"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Probe every `every` steps, decided from the step alone so that all processes agree."""
        if state.global_step % self.every == 0:
            self._probe(state, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Probe what training ended with, and close the record."""
        if self._probed != state.global_step:
            self._probe(state, **kwargs)
        if self._main and self.run is not None:
            run = self.run
            status = "failed" if self._failed else "finished"
            self._guarded(lambda: run.update_manifest(status=status), state, "could not close the record")
        if self._main and self._sink is not None:
            self._sink.finish()

    # --- beginning --------------------------------------------------------------------------------------------------

    def _begin(self, args: Any, state: Any, model: Any, processing_class: Any = None, **kwargs: Any) -> None:
        anatomy = Anatomy.of(model)
        path = self._folder or Path(args.output_dir) / "headwatch"
        if state.global_step > 0 and (path / "manifest.json").is_file():
            self._resume(path, state.global_step)
        else:
            if state.global_step > 0:
                logger.warning(
                    "headwatch: the run resumes at step %d, but %s holds no record of it: lives are told from here on",
                    state.global_step,
                    path,
                )
            probes, n_pairs, seed, tokenizer = self._given
            tokenizer = tokenizer or getattr(processing_class, "tokenizer", processing_class)
            self.probes = ProbeSet.resolve(probes, tokenizer, n_pairs=n_pairs, seed=seed)
            if self._main:
                self.run = RunFolder.create(path, self._manifest(args, model, anatomy))
                self.probes.save(path / "probes.safetensors")
        assert self.probes is not None
        for family in self.probes.family_names:
            shape = (anatomy.n_layers, anatomy.n_heads)
            self.histories.setdefault(family, HeadHistory(*shape, settings=self.evidence, family=family))
            if self._edges:
                self.circuits.setdefault(family, HeadHistory(*shape, rule="circuit", family=family))

    def _resume(self, path: Path, step: int) -> None:
        """Go on with the record: the same frozen probe set, the history cut to the checkpoint."""
        self.probes = ProbeSet.load(path / "probes.safetensors")
        run = RunFolder.open(path)
        expected = run.manifest["probes"]["fingerprint"]
        if self.probes.fingerprint != expected:
            raise UserError(
                f"{path / 'probes.safetensors'} has fingerprint {self.probes.fingerprint}, but the manifest says "
                f"{expected}: lives can only be told on the pairs they began with; restore the file or move {path} away"
            )
        if self._main:
            run.cut_after(step)
            run.update_manifest(status="running")
            self.run = run
        self._training = run.training()
        for family in self.probes.family_names:
            self.histories[family] = HeadHistory.from_run(run, family)
            if self._edges:
                self.circuits[family] = HeadHistory.from_run(run, family, rule="circuit")
        steps = run.steps
        self._probed = steps[-1] if steps else None

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
        if self._failed or self.probes is None or model is None:
            return
        step = state.global_step
        self._probed = step
        began = time.perf_counter()
        try:
            score = score_edges if self._edges else score_heads
            scores = score(model, self.probes, optimizer=optimizer, **self._pass)
            self._record(step, scores, began, final=step >= state.max_steps)
        except Exception as error:
            self._fail(error, step, "failed")

    def _record(self, step: int, scores: EdgeScores | HeadScores, began: float, final: bool) -> None:
        """Tell the histories, the run folder and the sinks about one probe."""
        assert self.probes is not None
        heads = scores.heads if isinstance(scores, EdgeScores) else scores
        checks = {
            "completeness_error": heads.checks.completeness,
            "row_sum_error": heads.checks.row_sums,
            "stream_error": heads.checks.stream,
        }
        self._check(step, checks)
        scalars: dict[str, Any] = {key: value for key, value in checks.items() if value is not None}
        events: list[Event] = []
        circuits: list[CircuitHeads] = []
        mean_abs: list[np.ndarray[Any, Any]] = []
        for family in self.probes.family_names:
            mine = heads.select(family)
            history = self.histories[family]
            readings = mine.readings
            events += history.add(
                step, mine.per_pair.numpy(), readings.metric_clean.numpy(), readings.metric_corrupted.numpy()
            )
            scalars |= {f"{family}/{key}": value for key, value in history.latest_scalars().items()}
            scalars[f"{family}/accuracy"] = float(readings.correct.float().mean())
            if isinstance(scores, EdgeScores):
                found = self._circuit(scores.select(family))
                circuits.append(found)
                mean_abs.append(scores.select(family).mean_abs().numpy())
                circuit = self.circuits[family]
                events += circuit.add_membership(step, found.active, found.importance, found.stability)
                scalars |= {f"{family}/circuit/{key}": value for key, value in circuit.latest_scalars().items()}
                scalars[f"{family}/circuit/edges"] = found.n_edges
        scalars |= {"pass_seconds": heads.seconds, "seconds": time.perf_counter() - began}
        if heads.peak_memory_mb is not None:
            scalars["peak_memory_mb"] = heads.peak_memory_mb
        if not self._main:
            return
        self._write(step, heads, circuits, mean_abs, events, scalars)
        if self._sink is not None:
            # Figures are data of their own by now: the sink draws them in its thread while training goes on.
            data = {family: figures.all_figures(h, self._training) for family, h in self.histories.items()}
            self._sink.log(step, scalars, lambda: _drawn(data), final=final)
            if self.run is not None and not self._linked and (info := self._sink.run_info()):
                self.run.update_manifest(wandb=info)
                self._linked = True

    def _circuit(self, scores: EdgeScores) -> CircuitHeads:
        graph = Graph(scores.sources, scores.targets, scores.is_real.numpy())
        return circuit_heads(scores.per_pair.abs().numpy(), graph, *self._rule, seed=self._seed)

    def _write(
        self,
        step: int,
        heads: HeadScores,
        circuits: list[CircuitHeads],
        mean_abs: list[np.ndarray[Any, Any]],
        events: list[Event],
        scalars: dict[str, Any],
    ) -> None:
        assert self.run is not None
        self.run.write_scores(
            step,
            ProbeScores(
                head_scores=heads.per_pair.float().numpy(),
                metric_clean=heads.readings.metric_clean.float().numpy(),
                metric_corrupted=heads.readings.metric_corrupted.float().numpy(),
                correct=heads.readings.correct.to(torch.uint8).numpy(),
                circuit_active=np.stack([c.active for c in circuits]) if circuits else None,
                circuit_stability=np.stack([c.stability for c in circuits]).astype(np.float32) if circuits else None,
                importance=np.stack([c.importance for c in circuits]).astype(np.float32) if circuits else None,
                edges_mean_abs=np.stack(mean_abs).astype(np.float32) if mean_abs else None,
            ),
        )
        self.run.append_events(events)
        self.run.append_scalars(step, scalars)

    # --- when something is wrong ------------------------------------------------------------------------------------

    def _check(self, step: int, checks: dict[str, float | None]) -> None:
        for name, value in checks.items():
            if value is not None and not value <= LIMITS[name] and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "headwatch, step %d: %s is %.3g, above %.2g: scores of this run are only roughly right%s",
                    step,
                    name.replace("_", " "),
                    value,
                    LIMITS[name],
                    "; take more steps of the path (steps=10)" if name == "completeness_error" else "",
                )

    def _guarded(self, action: Callable[[], Any], state: Any, what: str) -> None:
        try:
            action()
        except Exception as error:
            self._fail(error, state.global_step, what)

    def _fail(self, error: Exception, step: int, what: str) -> None:
        """Turn probing off with one warning; raise only when asked to, or when the model is not as it was.

        What the user can mend (a model that cannot be taken apart, pairs without answers) shows at the base probe,
        before anything has been trained, and is raised there too.
        """
        at_base = not any(history.steps for history in self.histories.values())
        if self.strict or left_trace(error) or (isinstance(error, UserError) and at_base):
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


def _drawn(data: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every family's figures as plotly JSON, named family/figure."""
    return {f"{family}/{name}": figure for family, f in data.items() for name, figure in plotly_figures.draw(f).items()}


def _model_name(model: Any) -> str:
    """The name on the Hub, or the folder's own name: a whole path says more about the machine than about the model."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name
