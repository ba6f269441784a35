"""One model under evaluation: loaded once, on first use, and evaluated with any heads scaled."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwatch.analysis.interventions import scaled_heads
from headwatch.analysis.scaled_checkpoint import save_scaled_checkpoint
from headwatch.errors import UserError
from headwatch.evaluation.benchmarks import Problem
from headwatch.evaluation.harness import TaskResult, keep_task, kept_task, run_task
from headwatch.evaluation.hf_engine import HfEngine
from headwatch.evaluation.run import Engine, Result, evaluate
from headwatch.evaluation.sampling import SamplingSettings
from headwatch.evaluation.vllm_engine import VllmEngine
from headwatch.grading.math_grader import MathGrader
from headwatch.model.head_names import Head, head_name
from headwatch.model.loading import Loader, adapter_base, load_tokenizer
from headwatch.model.weights_stamp import weights_stamp

GRADING_SECONDS = 600.0  # for the comparisons of a batch: no reward waits for them


class Evaluator:
    """A model and how its answers are sampled.

    Args:
        model: a folder, the folder of an adapter, or a name on the Hub.
        settings: of the sampling.
        loader: how it is loaded.
        base: base of an adapter; None is its own.
        tokenizer: name of the tokenizer; None is the model's.
        engine: "transformers" or "vllm".
    """

    def __init__(
        self,
        model: str,
        settings: SamplingSettings,
        loader: Loader,
        base: str | None = None,
        tokenizer: str | None = None,
        engine: str = "transformers",
    ) -> None:
        self.name, self.settings, self._loader, self._engine = model, settings, loader, engine
        self._base = base
        names = [name for name in (model, base or adapter_base(model)) if name]
        self.tokenizer = load_tokenizer(*([tokenizer] if tokenizer else names))
        self._loaded: Any = None
        self._grader = MathGrader(budget=GRADING_SECONDS)

    @property
    def model(self) -> Any:
        """The model, loaded on first use."""
        if self._loaded is None:
            self._loaded = self._loader.model(self.name, self._base)
        return self._loaded

    def evaluate(
        self, problems: Sequence[Problem], folder: Path, heads: Mapping[Head, float] | None = None, label: str = ""
    ) -> Result:
        """Evaluate with some heads scaled.

        Args:
            problems: the benchmark.
            folder: where the answers are kept; complete batches there are not sampled again.
            heads: {head: factor}; None changes nothing.
            label: of the progress bar.
        """
        about = self._about(heads)
        if self._engine == "vllm":
            return self._by_vllm(problems, folder, heads or {}, about, label)

        def make() -> Engine:
            return HfEngine(self.model, self.tokenizer, self.settings, heads)

        return evaluate(make, self.tokenizer, problems, self.settings, folder, about, self._grader, label)

    def harness(
        self, task: str, limit: int | None, folder: Path, heads: Mapping[Head, float] | None = None
    ) -> TaskResult:
        """A task of lm-evaluation-harness with some heads scaled.

        Args:
            task: its name, or the path of its file.
            limit: the first so many documents; None takes all.
            folder: where the result is kept; it is read from there if the settings are the same.
            heads: {head: factor}; None changes nothing.
        """
        if self._engine == "vllm":
            raise UserError("--engine vllm: tasks of lm-evaluation-harness are run by transformers; leave it out")
        about = {**self._about(heads), "task": task, "limit": limit, "seed": self.settings.seed}
        found = kept_task(folder, about)
        if found is None:
            with scaled_heads(self.model, heads or {}):
                size, seed = self.settings.batch_size, self.settings.seed
                found = run_task(task, self.model, self.tokenizer, size, limit, seed)
            keep_task(folder, about, found)
        return found

    def _about(self, heads: Mapping[Head, float] | None) -> dict[str, Any]:
        """What defines the answers, in addition to the settings of the sampling."""
        return {
            "model": Path(self.name).name,
            "weights": weights_stamp(self.name),
            "dtype": str(self._loader.dtype),
            "engine": self._engine,
            "heads": {head_name(*head): factor for head, factor in sorted((heads or {}).items())},
        }

    def _by_vllm(
        self, problems: Sequence[Problem], folder: Path, heads: Mapping[Head, float], about: Any, label: str
    ) -> Result:
        """By vLLM: scaled heads are written into a checkpoint that is deleted afterwards."""
        with tempfile.TemporaryDirectory(prefix="headwatch-scaled-") as temporary:

            def make() -> Engine:
                name = self.name
                if heads or adapter_base(name):
                    name = str(save_scaled_checkpoint(name, Path(temporary) / "model", heads))
                return VllmEngine(name, self.tokenizer, self.settings)

            return evaluate(make, self.tokenizer, problems, self.settings, folder, about, self._grader, label)
