"""`headwatch train RECIPE.yaml [--option value ...]`, and the same under `accelerate launch -m headwatch.training`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback

from headwatch.callback import HeadWatchCallback
from headwatch.demo.quiet import environment
from headwatch.errors import UserError
from headwatch.record.run_folder import RunFolder
from headwatch.report.html import write_report
from headwatch.training.checkpoints import checkpoint_to_resume, skip_finished_epochs, wandb_variables
from headwatch.training.data import load_rows, prepare
from headwatch.training.meta_model import load_meta_model
from headwatch.training.offline_plan import is_offline, offline_plan
from headwatch.training.options import Options, Recipe, parse
from headwatch.training.plan import make_plan
from headwatch.training.processes import describe_running
from headwatch.training.rewards import resolve
from headwatch.training.smoke import Substitution, make_small, without_gpu, write_stand_ins
from headwatch.training.trainer import load_tokenizer, make_trainer, release_ddp


def main(arguments: Sequence[str]) -> int:
    """Run a recipe; the exit code is 0, or 2 with one line on standard error (of rank 0) for a user's mistake."""
    try:
        run(arguments)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"headwatch: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: Sequence[str], watch: type[HeadWatchCallback] = HeadWatchCallback) -> Any:
    """Run a recipe.

    Args:
        arguments: `RECIPE.yaml [--option value ...]`.
        watch: the class of the callback.

    Returns:
        The trainer; None after --dry-run.

    Raises:
        UserError: a user's mistake, found before the first step.
    """
    options = parse(arguments)
    replaced: list[Substitution] = []
    stand_ins: Path | None = None
    if options.values["smoke"]:
        output = str(options.values["output_dir"])
        stand_ins = Path(output) / "stand-ins" if "output_dir" in options.typed else Path(f"{output}-smoke")
        replaced = without_gpu(options) + make_small(options, stand_ins)
    elif options.values["dry_run"] and not torch.cuda.is_available():
        replaced = without_gpu(options)
    _check_options(options)
    recipe = options.build()
    variables = {}
    if recipe.launch.wandb_project and "WANDB_PROJECT" not in os.environ:
        variables["WANDB_PROJECT"] = recipe.launch.wandb_project
    if stand_ins is not None and "WANDB_MODE" not in os.environ:
        variables["WANDB_MODE"] = "offline"
        replaced.append(Substitution("WANDB_MODE", "online", "offline", "smoke runs are not uploaded"))
    checkpoint = None if recipe.launch.dry_run else checkpoint_to_resume(recipe.training)
    if checkpoint is not None and "WANDB_RUN_ID" not in os.environ:
        variables |= wandb_variables(checkpoint, recipe.training.output_dir)
    with environment(**variables):
        return _run(recipe, options, replaced, stand_ins, watch, checkpoint)


def _run(
    recipe: Recipe,
    options: Options,
    replaced: Sequence[Substitution],
    stand_ins: Path | None,
    watch: type[HeadWatchCallback],
    checkpoint: str | None,
) -> Any:
    first = recipe.training.process_index == 0
    if not recipe.launch.dry_run:
        try:
            (stand_ins or Path(recipe.training.output_dir)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output_dir {recipe.training.output_dir}: cannot be made ({error.strerror})") from error
    if stand_ins is not None:
        with recipe.training.main_process_first(local=False, desc="stand-ins"):
            if first:
                write_stand_ins(stand_ins)
    if first:
        _print_header(recipe, replaced)
    if recipe.launch.dry_run:
        if first:
            print(_plan(recipe))
        return None
    tokenizer = load_tokenizer(recipe)
    load_meta_model(
        str(recipe.model.model_name_or_path), recipe.model.model_revision, recipe.training.trust_remote_code
    )
    with recipe.training.main_process_first(local=False, desc="rows"):
        rows = load_rows(recipe.data)
        prepared = prepare(
            rows, recipe.data, tokenizer, recipe.launch.method, max_length=getattr(recipe.training, "max_length", None)
        )
    if first:
        print(f"rows: {prepared.summary()}")
        if not prepared.complete:
            print(f"rows: fewer than the {recipe.data.n_problems:,} of --n_problems")
        _write_recipe(recipe, options)
    if recipe.launch.accelerate_config and recipe.training.world_size == 1 and stand_ins is None:
        raise UserError(
            f"{recipe.path}: it is made for several processes: accelerate launch --config_file "
            f"{recipe.launch.accelerate_config} -m headwatch.training {recipe.path}"
        )
    trainer = make_trainer(recipe, tokenizer, prepared, watch)
    trainer.add_callback(_SayProcesses(trainer))
    if checkpoint is not None:
        if first:
            print(f"resuming from {checkpoint}")
        if recipe.launch.method == "grpo":
            skip_finished_epochs(trainer, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(recipe.training.output_dir)
    release_ddp(trainer)
    if first:
        _print_end(recipe, trainer, stand_ins)
    if hasattr(trainer, "end"):  # transformers 5.18: closes trackers and the process group
        trainer.end()
    return trainer


def _plan(recipe: Recipe) -> str:
    """The plan; without a network, the part that needs none."""
    try:
        return make_plan(recipe, load_tokenizer(recipe)).text()
    except UserError as error:
        if not is_offline(error):
            raise
        return offline_plan(recipe)


class _SayProcesses(TrainerCallback):
    """Print under which sharding the training runs, once the trainer has prepared the model."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print it, on the main process."""
        if state.is_world_process_zero:
            print(describe_running(self.trainer), flush=True)


def _check_options(options: Options) -> None:
    """UserError for options that would fail after the model or the data is loaded."""
    values = options.values
    report_to = values["report_to"]
    if "wandb" in ([report_to] if isinstance(report_to, str) else report_to or []) and find_spec("wandb") is None:
        raise UserError("--report_to wandb: it is not installed; pip install 'headwatch[wandb]', or --report_to none")
    if values["keep_optimizers"] is not None and values["keep_optimizers"] < 1:
        raise UserError(f"--keep_optimizers {values['keep_optimizers']}: at least 1, or nothing could be resumed")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if values[name] < 1:
            raise UserError(f"--{name} {values[name]}: at least 1")
    if options.method == "grpo":
        resolve(values["rewards"])
        weights = values["reward_weights"]
        if weights is not None and len(weights) != len(values["rewards"]):
            raise UserError(
                f"--reward_weights {' '.join(map(str, weights))}: {len(weights)} for {len(values['rewards'])} of "
                f"--rewards ({' '.join(values['rewards'])}); give one per reward"
            )
        if values["use_vllm"] and find_spec("vllm") is None and not values["dry_run"]:
            raise UserError("--use_vllm true: vllm is not installed; pip install vllm, or --use_vllm false (slower)")
    options.settings()  # UserError for those that are not valid


def _print_end(recipe: Recipe, trainer: Any, stand_ins: Path | None) -> None:
    """The result in two lines, after the progress bars; of a smoke test also its report."""
    output = Path(recipe.training.output_dir)
    try:
        run = RunFolder.open(recipe.watch.folder or output / "headwatch")
    except UserError:  # headwatch could not start: its warning is above
        print(f"finished: {trainer.state.global_step} steps, no probes, model in {output}")
        return
    failed = run.manifest["status"] == "failed"
    what = "smoke test" if stand_ins is not None else "training"
    state = "finished, but a probe failed: see the warning above" if failed else "finished"
    print(f"{what} {state}: {trainer.state.global_step} steps, {len(run.steps)} probes, model in {output}")
    if stand_ins is not None:
        print(f"report: {write_report(run)}")


def _print_header(recipe: Recipe, replaced: Sequence[Substitution]) -> None:
    print(f"recipe: {recipe.path} ({recipe.launch.method}), output: {recipe.training.output_dir}")
    if replaced:
        print(f"{len(replaced)} options differ from the recipe's:")
        for substitution in replaced:
            print(f"  {substitution}")


def _write_recipe(recipe: Recipe, options: Options) -> None:
    """Write {output_dir}/recipe.yaml: the given options with their resolved values, without secrets."""
    folder = Path(recipe.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # in a smoke run only the folder of the stand-ins exists
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(options.recorded(), sort_keys=True, allow_unicode=True), encoding="utf-8"
    )
