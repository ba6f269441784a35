"""Compare mathematical expressions with math-verify in child processes that a timer can kill.

A completion can contain anything, and sympy does not finish `10^{10^{10}}`. math-verify's own timeout is an alarm
signal, which works only in the main thread and does not interrupt a long multiplication. Killing a child process
(math_worker.py, started on first use) works from any thread and in every rank.

Every task and its reply carry an id. If an interrupt between the two leaves the reply of another task in the pipe, the
worker is closed and the task is sent to a new one, so no grade is assigned to the wrong task.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

from headwatch.errors import UserError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0  # per comparison; math-verify's own default
BUDGET_SECONDS = 30.0  # for all comparisons of one step
WORKERS = min(4, os.cpu_count() or 1)
START_SECONDS = 120.0  # sympy is large, and many ranks may load it from one disk at the same time


@dataclass(frozen=True)
class Task:
    """One comparison: does `answer`, one whole expression, equal the first text of `gold` that can be parsed?"""

    gold: tuple[str, ...]
    answer: str


@dataclass
class Counts:
    """Cumulative counts of comparisons, logged with the rewards.

    Attributes:
        graded: completed.
        slow: completed, but in more than one second.
        timed_out: stopped by the timeout, and graded as wrong.
        skipped: not started because the step's time budget was spent, and graded as wrong.
    """

    graded: int = 0
    slow: int = 0
    timed_out: int = 0
    skipped: int = 0


class Worker:
    """One child process. Not thread-safe."""

    def __init__(self) -> None:
        if find_spec("math_verify") is None:
            raise UserError("the accuracy reward needs math-verify: pip install 'headwatch[train]'")
        script = Path(__file__).with_name("math_worker.py")
        # -P keeps the script's folder off the child's sys.path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.owner = os.getpid()  # a fork must not use the pipes
        self._ids = count()
        try:
            ready, _ = self._exchange(None, START_SECONDS)
        except BaseException:
            self.close()
            raise
        if ready.strip() != "ready":
            self.close()
            raise UserError(f"math-verify could not be loaded: try `{sys.executable} -c 'import math_verify'`")

    @property
    def alive(self) -> bool:
        """Whether this process can use the worker."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, task: Task, seconds: float) -> tuple[bool, float | None, bool]:
        """Return (answered, grade, timed out). Close the worker if it did not answer."""
        number = next(self._ids)
        line = json.dumps({"id": number, "gold": task.gold, "answer": task.answer})
        try:
            reply, late = self._exchange(line, seconds)
            found = json.loads(reply) if reply else None
        except ValueError:
            found, late = None, False
        except BaseException:  # an interrupt leaves an unread reply in the pipe
            self.close()
            raise
        if isinstance(found, dict) and found.get("id") == number:
            return True, cast("float | None", found.get("grade")), False
        self.close()
        return False, None, late

    def close(self) -> None:
        """Kill the process."""
        if self.owner != os.getpid():
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # unsent data for a dead worker
                cast(IO[str], pipe).close()

    def _exchange(self, line: str | None, seconds: float) -> tuple[str, bool]:
        """Return the next line of the process ("" if it died), and whether the timer killed it."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            if line is not None:
                stdin = cast(IO[str], self._process.stdin)
                stdin.write(line + "\n")
                stdin.flush()
            return cast(IO[str], self._process.stdout).readline(), late.is_set()
        except OSError:  # the process died
            return "", late.is_set()
        finally:
            timer.cancel()


@dataclass
class MathGrader:
    """A pool of workers that grades the comparisons of a step within a time budget.

    Attributes:
        timeout: seconds per comparison.
        budget: seconds per call of `grade`; comparisons that remain are graded as wrong.
        workers: maximum number of child processes.
        counts: cumulative counts of comparisons.
    """

    timeout: float = TIMEOUT_SECONDS
    budget: float = BUDGET_SECONDS
    workers: int = WORKERS
    counts: Counts = field(default_factory=Counts)
    _idle: list[Worker] = field(default_factory=list, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _registered: bool = field(default=False, repr=False)

    def grade(self, tasks: Sequence[Task]) -> list[float | None]:
        """Grade tasks; equal tasks are compared once.

        Returns:
            One grade per task: 1.0 if equal, else 0.0, also if the comparison is too slow or too large or `answer`
            cannot be parsed. None if no gold text can be parsed.
        """
        if not self._registered:
            self._registered = True
            atexit.register(self.close)
        distinct = list(dict.fromkeys(tasks))
        end = time.monotonic() + self.budget
        if len(distinct) < 2 or self.workers < 2:
            found = {task: self._one(task, end) for task in distinct}
        else:
            with ThreadPoolExecutor(min(self.workers, len(distinct))) as pool:
                found = dict(zip(distinct, pool.map(lambda task: self._one(task, end), distinct), strict=True))
        return [found[task] for task in tasks]

    def close(self) -> None:
        """Stop all child processes; the next call of `grade` starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _one(self, task: Task, end: float) -> float | None:
        for _ in range(2):  # retry once: the worker may have died at its memory limit
            left = end - time.monotonic()
            if left <= 0:
                self._count("skipped", "the time budget of a step was exceeded")
                return 0.0
            began = time.monotonic()
            worker = self._take()
            answered, grade, late = worker.ask(task, min(self.timeout, max(left, 0.1)))
            if answered:
                with self._lock:
                    self._idle.append(worker)
                    self.counts.graded += 1
                    self.counts.slow += time.monotonic() - began > 1.0
                return grade
            if late:
                self._count("timed_out", f"math-verify took more than {self.timeout:g} s for a comparison")
                return 0.0
        return 0.0

    def _take(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
        return Worker()

    def _count(self, name: str, what: str) -> None:
        with self._lock:
            setattr(self.counts, name, getattr(self.counts, name) + 1)
            first = getattr(self.counts, name) == 1
        if first:
            logger.warning("headwatch: %s; such answers are graded as wrong (their number is logged)", what)
