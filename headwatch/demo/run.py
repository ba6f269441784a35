"""`headwatch demo`: pretrain a small model on arithmetic, post-train it by SFT and by GRPO with the callback."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from headwatch.callback import HeadWatchCallback
from headwatch.demo.ending import EndPlan, circuit_lines, circuits_of, end_of_run
from headwatch.demo.post_training import GrpoStage, SftStage, train_grpo, train_sft
from headwatch.demo.pretraining import BaseStage, pretrain
from headwatch.demo.quiet import StageBar, environment, one_thread, quiet_libraries, reset_wandb, stage_bar
from headwatch.demo.sums import Reward, closed_box, exact_answer
from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save
from headwatch.errors import UserError
from headwatch.probes import ProbeSet
from headwatch.record.run_folder import RunFolder
from headwatch.report.html import write_report


@dataclass(frozen=True)
class DemoPlan:
    """Sizes and settings of the demo. The defaults were chosen by measurement (dev/log.md)."""

    size: ModelSize = field(default_factory=ModelSize)
    base: BaseStage = field(default_factory=BaseStage)
    sft: SftStage = field(default_factory=SftStage)
    grpo: GrpoStage = field(default_factory=GrpoStage)
    rewards: tuple[Reward, ...] = (exact_answer,)
    families: tuple[str, ...] = ("carry", "addition")
    n_pairs: int = 64
    probes_per_run: int = 10
    path_steps: int = 4
    end: EndPlan = field(default_factory=EndPlan)


QUICK = DemoPlan(
    size=ModelSize(n_layers=2, n_heads=4, d_model=32, d_mlp=64),
    base=BaseStage(steps=60, learning_rate=1e-2, warmup_steps=10),
    sft=SftStage(steps=6, batch_size=8),
    grpo=GrpoStage(steps=6, prompts_per_step=2, num_generations=4),
    rewards=(exact_answer, closed_box),  # no sum is right after so few steps, and equal rewards give no gradient
    n_pairs=16,
    probes_per_run=3,
    path_steps=2,
    end=EndPlan(sums=40, random_sets=3, controls=1, sizes=(0.1, 1.0), role_prompts=2),
)


def run_demo(
    folder: str | Path,
    *,
    seed: int = 0,
    quick: bool = False,
    plan: DemoPlan | None = None,
    wandb: bool | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Pretrain a base model, post-train it by SFT and by GRPO with the callback, and write one report of both runs.

    At the end come exact patching of the events, the circuits of the three models, and the emerged heads off.

    Nothing is downloaded and nothing is sent.

    Args:
        folder: receives base/, sft/ and grpo/ (models; sft/ and grpo/ with their run folders headwatch/), wandb/ and
            report.html.
        seed: the same seed gives the same weights, rewards and scores on the same machine.
        quick: run for a few seconds, as a test; the report shows little.
        plan: settings that replace the built-in ones.
        wandb: log to W&B in offline mode; None means yes if wandb is installed.
        say: takes the lines of the result.

    Returns:
        The path of the report.

    Raises:
        UserError: `folder` cannot be created.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder={str(folder)!r} cannot be created ({error.strerror}): give another one") from error
    plan = plan or (QUICK if quick else DemoPlan())
    wandb = importlib.util.find_spec("wandb") is not None if wandb is None else wandb
    with ExitStack() as stack:
        stack.enter_context(quiet_libraries())
        stack.enter_context(one_thread())
        if wandb:
            stack.enter_context(
                environment(
                    WANDB_MODE="offline",
                    WANDB_DIR=str(folder.resolve()),
                    WANDB_PROJECT="headwatch-demo",
                    WANDB_SILENT="true",
                )
            )
            stack.enter_context(reset_wandb())
        base = make_base(folder / "base", plan, seed)
        end = DemoEnd(base, plan, seed)
        for method in ("sft", "grpo"):
            post_train(method, base, folder / method, plan, seed, wandb, end)
    for line in end.lines():
        say(line)
    return write_report([folder / "sft", folder / "grpo"], folder / "report.html")


def make_base(folder: Path, plan: DemoPlan, seed: int) -> Path:
    """Build, pretrain and save the base model with its tokenizer; return the folder."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, plan.size, seed=seed)
    with stage_bar("1/3 base: sums, no carry", plan.base.steps) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(1)

        pretrain(model, tokenizer, replace(plan.base, seed=seed), on_step)
    return save(model, tokenizer, folder)


class DemoEnd:
    """What is measured after each training; the circuits of the base are computed once.

    Args:
        base: folder of the base model.
        plan, seed: of the demo.
    """

    def __init__(self, base: Path, plan: DemoPlan, seed: int) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(base).eval()
        self._plan, self._seed = plan, seed
        self._circuits: list[dict[str, Any]] = []
        self._of_base: list[str] | None = None
        self._of_runs: dict[str, list[str]] = {}

    def measure(self, method: str, trainer: Any, output_dir: Path) -> None:
        """Measure the end of one training."""
        run, plan, seed = RunFolder.open(output_dir), self._plan, self._seed
        tokenizer, model = trainer.processing_class, trainer.model.eval()
        with stage_bar(f"    {method.upper()}: circuits, heads off", 3 + (self._of_base is None)) as bar:
            if self._of_base is None:
                probes = ProbeSet.load(run.path / "probes.safetensors")
                self._circuits, missing = circuits_of(self._model, probes, plan.path_steps, plan.end, seed)
                self._of_base = [*circuit_lines(self._circuits), *missing]
                bar.update()
            self._of_runs[method] = end_of_run(
                model, self._model, tokenizer, run, self._circuits, plan.path_steps, plan.end, seed, bar.update
            )

    def lines(self) -> list[str]:
        """The sentences of all models."""
        found = [f"base: {line}" for line in self._of_base or []]
        return found + [f"{method.upper()}: {line}" for method, lines in self._of_runs.items() for line in lines]


def post_train(
    method: str, base: Path, output_dir: Path, plan: DemoPlan, seed: int, wandb: bool, end: DemoEnd | None = None
) -> None:
    """Post-train the base model by `method` ("sft" or "grpo") with the callback; weights and record go to output_dir.

    What `end` measures follows, if it is given.
    """
    stage = plan.sft if method == "sft" else plan.grpo
    watch = HeadWatchCallback(
        probes=plan.families,
        every=max(1, stage.steps // plan.probes_per_run),
        n_pairs=plan.n_pairs,
        seed=seed,
        scoring={"steps": plan.path_steps},
        strict=True,
    )
    common: dict[str, Any] = {
        "report_to": ["wandb"] if wandb else "none",
        "seed": seed,
        "run_name": f"demo-{method}",
    }
    if isinstance(stage, SftStage):
        bar = StageBar("2/3 SFT: worked solutions", "loss")
        trainer: Any = train_sft(base, output_dir, stage, callbacks=[bar, watch], **common)
    else:
        bar = StageBar("3/3 GRPO: exact answers", "reward")
        trainer = train_grpo(base, output_dir, stage, rewards=plan.rewards, callbacks=[bar, watch], **common)
    trainer.save_model(str(output_dir))
    if end is not None:
        end.measure(method, trainer, output_dir)
    if wandb and "wandb" in sys.modules:  # Transformers leaves the W&B run open, and the next stage needs its own
        sys.modules["wandb"].finish()
