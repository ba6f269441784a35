"""The part of a plan that needs neither the model nor the data: what --dry-run prints without a network."""

from __future__ import annotations

from pathlib import Path

from headwatch.errors import UserError
from headwatch.training.options import Recipe
from headwatch.training.plan import families_line, joined
from headwatch.training.processes import planned

SIGNS = ("couldn't connect", "could not connect", "cannot connect", "offline", "connection error", "name resolution")


def is_offline(error: UserError) -> bool:
    """Whether a failure to load something means that the Hub cannot be reached."""
    return any(sign in str(error).lower() for sign in SIGNS)


def offline_plan(recipe: Recipe) -> str:
    """The plan as text, one line per topic, without what the model, the tokenizer and the rows decide."""
    training, watch, launch = recipe.training, recipe.watch, recipe.launch
    batch = (
        training.per_device_train_batch_size
        * training.gradient_accumulation_steps
        * planned(launch.accelerate_config).number
    )
    steps = f"{training.max_steps:,}" if training.max_steps > 0 else f"{training.num_train_epochs:g} epochs"
    probes = f"step 0, every {watch.every} steps, the last"
    if training.max_steps > 0:
        last = 1 if training.max_steps % watch.every else 0
        probes = f"{1 + training.max_steps // watch.every + last} ({probes})"
    reports = [training.report_to] if isinstance(training.report_to, str) else list(training.report_to or [])
    lines = [
        ("model", f"{recipe.model.model_name_or_path}, not read: the Hub cannot be reached"),
        ("data", f"{recipe.data.dataset_name}, not read"),
        ("step", f"{batch} {'completions' if launch.method == 'grpo' else 'conversations'}"),
        ("steps", steps),
        ("learning rate", f"{training.learning_rate:g}"),
        *([("rewards", " + ".join(launch.rewards))] if launch.method == "grpo" else []),
        ("probes", f"{probes}, {watch.n_pairs} pairs each of {families_line(recipe)}"),
        ("evidence", ", ".join(f"{name} {value}" for name, value in vars(watch.evidence).items())),
        ("record", str(watch.folder or Path(training.output_dir) / "headwatch")),
        ("logs", f"{', '.join(reports) or 'none'}; probes: {joined(watch.report_to)}, W&B run: {watch.wandb}"),
        ("not known", "tokens, memory and disk space: they need the model and the rows"),
    ]
    return "\n".join(f"  {name:<14} {text}" for name, text in lines)
