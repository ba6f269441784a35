"""`headwatch train RECIPE`: train from a recipe, with the callback."""

import argparse
from pathlib import Path
from typing import Any

from headwatch.commands.loading import require
from headwatch.commands.options import add_command
from headwatch.errors import UserError


def add(commands: Any) -> None:
    """Declare the command."""
    train = add_command(
        commands,
        "train",
        run,
        "train by SFT or GRPO from a recipe, with the callback; --option value overrides an option of the recipe",
        "headwatch train recipes/smollm2-135m/sft_gsm8k.yaml --learning_rate 5e-5 --max_steps 20",
        allow_abbrev=False,
    )
    train.add_argument("recipe", metavar="RECIPE.yaml", help="recipe file; it may set any option of TRL's configs")
    train.add_argument("--dry-run", "--dry_run", action="store_true", help="print the plan and exit")
    train.add_argument(
        "--smoke", action="store_true", help="train a few steps with a small random model and generated rows"
    )
    train.set_defaults(options=[])


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if not Path(arguments.recipe).is_file():
        raise UserError(f"recipe {arguments.recipe!r} is not a file: give the path of a .yaml file")
    for option in arguments.options:  # before TRL is imported
        if option.startswith(("--headwatch_", "--headwatch-")):
            name = option.partition("=")[0]
            raise UserError(f"{name}: options of the block are written --headwatch.{name[len('--headwatch_') :]}")
    require("trl", "training from a recipe")
    from headwatch.training.launch import main as launch

    flags = ["--dry_run"] * arguments.dry_run + ["--smoke"] * arguments.smoke
    return launch([arguments.recipe, *arguments.options, *flags])
