"""Progress bars of the demo's stages, and context managers that silence other libraries."""

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
    """Disable the progress bars of datasets and transformers, and one warning.

    The warning is transformers' deprecation of `gradient_checkpointing`, whose new name TRL's configs lack.
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
    """Set environment variables, and restore their previous values on exit."""
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
def reset_wandb() -> Iterator[None]:
    """Make wandb read the environment again on entry and after exit; by itself it reads it once per process."""

    def teardown() -> None:
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()

    teardown()
    try:
        yield
    finally:
        teardown()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread.

    A second thread gains little on matrices this small, and results no longer depend on the number of cores. Threads
    that spin while waiting are many times slower when another process uses a core (dev/log.md).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class StageBar(TrainerCallback):
    """A trainer's progress bar on one line, with a running mean of the value logged as `key`."""

    def __init__(self, title: str, key: str) -> None:
        self.title, self.key = title, key
        self.mean: float | None = None
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar = stage_bar(self.title, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar by one step."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Update the running mean, over about ten logs."""
        if self.bar is not None and logs and self.key in logs:
            value = float(logs[self.key])
            self.mean = value if self.mean is None else 0.9 * self.mean + 0.1 * value
            self.bar.set_postfix_str(f"{self.key} {self.mean:.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar; its line stays."""
        if self.bar is not None:
            self.bar.close()


def stage_bar(title: str, total: int) -> tqdm[Any]:
    """A tqdm bar on standard error in the demo's layout, redrawn every 15 seconds where that is not a terminal."""
    return tqdm(
        total=total,
        desc=f"{title:<28}",
        bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed}{postfix}",
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
    )


def remove_printer(trainer: Trainer) -> None:
    """Remove the callback that prints every log as a dictionary when the trainer's own bar is disabled."""
    trainer.remove_callback(PrinterCallback)
