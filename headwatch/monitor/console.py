"""What a training prints: where it is recorded, the events as they are confirmed, how to write the report.

The lines go through the logger "headwatch.console" (`logging.getLogger("headwatch.console").disabled = True` silences
it). Where logging is not set up, they are written to standard error, above the progress bars.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from tqdm import tqdm

from headwatch.attribution.metrics import Reads
from headwatch.attribution.observer import Observer
from headwatch.lives.events import CONFIRMED, Event
from headwatch.record.run_folder import RunFolder

MAX_EVENTS = 6  # lines of one probe
DELAY = 2.0  # seconds after which a probe has a progress bar
LONG_PATCHING = 10.0  # seconds of exact patching at the base probe that are stated

logger = logging.getLogger("headwatch.console")


class _AboveBars(logging.Handler):
    """Writes a line above the progress bars, unless logging has been set up since."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            tqdm.write(self.format(record), file=sys.stderr)


def print_above_bars() -> None:
    """Where logging is not set up, write what headwatch logs (warnings too) above the progress bars."""
    package = logging.getLogger("headwatch")
    if not package.hasHandlers():
        package.addHandler(_AboveBars())


def say(line: str) -> None:
    """Print one line."""
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    print_above_bars()
    logger.info("headwatch: %s", line)


@contextmanager
def no_lines() -> Iterator[None]:
    """Print no line inside the block: for commands that use the callback's parts and print results of their own."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def say_opened(run: RunFolder, every: int, seconds: float | None, patching: float | None = None) -> None:
    """One line: where, which families, how many pairs, and what a probe costs.

    Args:
        run: the record.
        every: steps between probes.
        seconds: duration of the last probe; None if there is none yet.
        patching: its part for exact patching, where it is the base probe's, which is paid once per run.
    """
    probes = run.manifest["probes"]
    families, n = probes["families"], probes["n_pairs"]
    cost = "" if seconds is None else f"; the last one took {duration(seconds)}"
    if patching and seconds is not None and patching > LONG_PATCHING:
        cost = f"; the base probe took {duration(seconds)}, of which {duration(patching)} for exact patching, once"
    often = f"every {every} steps" if every > 1 else "every step"
    say(f"record in {run.path}; {n} pairs of {listed(families)}; a probe {often}{cost}")


def listed(names: Sequence[str]) -> str:
    """The names in a sentence.

    >>> listed(["carry", "addition", "openers"])
    'carry, addition and openers'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def duration(seconds: float) -> str:
    """Seconds with two digits, from two minutes on minutes.

    >>> [duration(each) for each in (0.613, 7.81, 104.2, 970.0)]
    ['0.61 s', '7.8 s', '104 s', '16 min']
    """
    if seconds >= 120.0:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.2g} s" if seconds < 10.0 else f"{seconds:.0f} s"


def say_events(step: int, events: Iterable[Event]) -> None:
    """One line per event that this probe confirms, by the evidence rule."""
    confirmed = [event for event in events if event.rule == "evidence" and event.status == CONFIRMED]
    for event in confirmed[:MAX_EVENTS]:
        say(f"step {step}: {event.describe()}")
    if len(confirmed) > MAX_EVENTS:
        say(f"step {step}: {len(confirmed) - MAX_EVENTS} more events, in the report")


def say_closed(run: RunFolder) -> None:
    """One line: how much was recorded, and the command of the report."""
    n = len(run.steps)
    folder = run.path.parent if run.path.name == "headwatch" else run.path
    say(f"{n} probe{'' if n == 1 else 's'} recorded; write the report: headwatch report {folder}")


def progress_bar(what: str, total: int, unit: str, shown: bool) -> "tqdm[Any]":
    """A progress bar that appears after DELAY seconds, unless it is not `shown`, and leaves no trace."""
    return tqdm(total=total, desc=what, unit=unit, delay=DELAY, leave=False, disable=not shown)


class ProbeProgress:
    """A progress bar over the pairs of a probe that takes more than DELAY seconds; also an observer of the pass.

    Args:
        inner: the observer to call, or None.
        what: in front of the bar.
        n_pairs: pairs that this process scores.
        shown: whether there is a bar at all.
    """

    def __init__(self, inner: Observer | None, what: str, n_pairs: int, shown: bool) -> None:
        self._inner = inner
        self._bar = progress_bar(what, n_pairs, "pair", shown)

    def __call__(self, rows: Any, clean_logits: Tensor, reads: Reads) -> None:
        """Called with every batch's clean run."""
        if self._inner is not None:
            self._inner(rows, clean_logits, reads)
        self._bar.update(len(rows))

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def patching_bar(step: int | None, n_effects: int, shown: bool) -> "tqdm[Any]":
    """A progress bar over the effects (a head on a pair) that take more than DELAY seconds to measure; a context.

    Args:
        step: of the probe.
        n_effects: number of effects that this process measures.
        shown: whether there is a bar at all.
    """
    desc = f"headwatch patching, step {step}"
    return tqdm(total=n_effects, desc=desc, unit="effect", delay=DELAY, leave=False, disable=not shown)
