"""Types of options, and declaring a command."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Repeated from headwatch.attribution, headwatch.probes and headwatch.sinks, which import torch; a test compares them.
METRICS = ("logit_diff", "kl", "nll")
KERNELS = ("auto", "torch", "triton")
ALPHAS = ("midpoint", "right", "left", "clean", "ends")
SERVICES = ("none", "wandb", "trackio", "tensorboard")
FAMILIES = ("addition", "carry", "sums", "word_problem", "linear_equation", "recall")


def add_command(
    commands: Any, name: str, run: Any, summary: str, example: str, **options: Any
) -> argparse.ArgumentParser:
    """Declare a command that calls `run(arguments)`; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"example: {example}", **options
    )
    parser.set_defaults(run=run)
    return parser


def in_existing_folder(text: str) -> str:
    """Type of an option: a path whose folder exists, so that a mistyped path creates no folders."""
    folder = Path(text).expanduser().resolve().parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: the folder {folder} does not exist; create it first")
    return text


def at_least_one(text: str) -> int:
    """Type of an option: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def at_least_zero(text: str) -> int:
    """Type of an option: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 0")
    return int(text)


def finite(text: str) -> float:
    """Type of an option: a number that is not NaN or infinite."""
    value = _float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return value


def _float(text: str) -> float:
    """The number; NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def number(low: float, high: float = math.inf, *, includes_low: bool = True) -> Callable[[str], float]:
    """Type of an option: a number from `low` (or above it) to `high`."""
    words = f"of at least {low:g}" if includes_low else f"above {low:g}"
    if high < math.inf:
        words += f" and at most {high:g}"

    def read(text: str) -> float:
        value = _float(text)
        if not (low <= value <= high and (includes_low or value > low) and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text} must be a number {words}")
        return value

    return read


def edges_or_share(text: str) -> float:
    """Type of an option: a number of edges, or a share of them below 1."""
    value = number(0.0, includes_low=False)(text)
    if value >= 1.0 and not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} must be a number of edges (5000) or a share of them below 1 (0.027)")
    return value


def seed_number(text: str) -> int:
    """Type of an option: a seed that every generator accepts."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 0 to {2**32 - 1}")
    return int(text)


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Type of an option: one of `names`."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is unknown; use one of {', '.join(names)}")
        return text

    return read
