"""One clean line a stage: the libraries' own bars and the warnings that a new user can do nothing about, kept away."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within: no bars for loading a small model or mapping a small dataset, and no warnings about names to come.

    The one kind of warning that is silenced: transformers announces that `gradient_checkpointing` will be called
    `activation_checkpointing`, which TRL's own configs do not know yet. Everything else is left to speak.
    """
    bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.*deprecated", category=FutureWarning)
            yield
    finally:
        if not bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers_logging.enable_progress_bar()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for the duration, and what they were before afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def fresh_wandb() -> Iterator[None]:
    """Within and after: wandb reads the environment anew. It reads it once a process, at the first run."""

    def forget() -> None:
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()

    forget()
    try:
        yield
    finally:
        forget()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch computes on one thread.

    Matrices this small gain little from a second one, sums come out the same whatever the number of cores, and threads
    that wait by spinning make the same work many times slower where another process holds a core (dev/log.md).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class StageBar(TrainerCallback):
    """A trainer's progress as one line, with a running mean of what it logs under `key`."""

    def __init__(self, title: str, key: str) -> None:
        self.title, self.key = title, key
        self.mean: float | None = None
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the empty bar."""
        self.bar = stage_bar(self.title, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step on."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Move the running mean (of about ten logs) on."""
        if self.bar is not None and logs and self.key in logs:
            value = float(logs[self.key])
            self.mean = value if self.mean is None else 0.9 * self.mean + 0.1 * value
            self.bar.set_postfix_str(f"{self.key} {self.mean:.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the line as it stands."""
        if self.bar is not None:
            self.bar.close()


def stage_bar(title: str, total: int) -> tqdm[Any]:
    """A tqdm bar with the demo's layout, on standard error; in a file, where nothing is overwritten, seldom drawn."""
    return tqdm(
        total=total,
        desc=f"{title:<28}",
        bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed}{postfix}",
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
    )


def hush_printer(trainer: Trainer) -> None:
    """Take away the callback that prints every log as a dictionary when a trainer's own bar is off."""
    trainer.remove_callback(PrinterCallback)
