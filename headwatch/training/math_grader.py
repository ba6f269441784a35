"""Whether two mathematical expressions are equal, decided by math-verify in child processes that can be killed.

A completion can hold anything: `10^{10^{10}}` keeps sympy busy for longer than the training lasts. math-verify's own
timeout is an alarm signal, which works only in a process's main thread and not inside one long multiplication. Here the
work is done by children (math_worker.py), started on first use, and a timer kills one that takes too long: that works
from any thread, in every rank, and stops anything.

Every task carries an id, and so does its reply. A reply that belongs to another task (one was interrupted between
question and answer) ends the worker, and the task is asked again of a new one: no grade can be read as another's.
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

TIMEOUT_SECONDS = 5.0  # of one comparison; math-verify's own default
BUDGET_SECONDS = 30.0  # of all comparisons of one step
WORKERS = min(4, os.cpu_count() or 1)
START_SECONDS = 120.0  # sympy is large, and many ranks may load it from one disk at once


@dataclass(frozen=True)
class Task:
    """One comparison: whether `answer`, one whole expression, equals the first of `gold` that can be parsed."""

    gold: tuple[str, ...]
    answer: str


@dataclass
class Counts:
    """What a grader has met so far; logged with the rewards.

    Attributes:
        graded: comparisons that were decided.
        slow: of these, the ones that took over a second.
        timed_out: comparisons that took longer than the timeout: wrong.
        skipped: comparisons left out because the step's budget was spent: wrong.
    """

    graded: int = 0
    slow: int = 0
    timed_out: int = 0
    skipped: int = 0


class Worker:
    """One child process. Not shared between threads."""

    def __init__(self) -> None:
        if find_spec("math_verify") is None:
            raise UserError("the accuracy reward needs math-verify: pip install 'headwatch[train]'")
        script = Path(__file__).with_name("math_worker.py")
        # -P: the script's folder, full of modules called data and plan, stays off the child's path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.owner = os.getpid()  # a fork must not share the pipes
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
        """Whether this process may ask it."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, task: Task, seconds: float) -> tuple[bool, float | None, bool]:
        """(answered, grade, timed out). Unless it answered, the worker is closed."""
        number = next(self._ids)
        line = json.dumps({"id": number, "gold": task.gold, "answer": task.answer})
        try:
            reply, late = self._exchange(line, seconds)
            found = json.loads(reply) if reply else None
        except ValueError:
            found, late = None, False
        except BaseException:  # an interrupt between question and answer leaves a reply that nobody reads
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
            with contextlib.suppress(OSError):  # what was still unsent to a dead worker
                cast(IO[str], pipe).close()

    def _exchange(self, line: str | None, seconds: float) -> tuple[str, bool]:
        """The next line of the process, "" where it died; and whether the timer killed it."""
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
        except OSError:  # the process is gone
            return "", late.is_set()
        finally:
            timer.cancel()


@dataclass
class MathGrader:
    """A pool of workers that grades the comparisons of a step together, within a time budget.

    Attributes:
        timeout: seconds of one comparison.
        budget: seconds of one call of `grade`; what is left over then is wrong.
        workers: child processes at most; fewer are started for fewer tasks.
        counts: what it has met so far.
    """

    timeout: float = TIMEOUT_SECONDS
    budget: float = BUDGET_SECONDS
    workers: int = WORKERS
    counts: Counts = field(default_factory=Counts)
    _idle: list[Worker] = field(default_factory=list, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _registered: bool = field(default=False, repr=False)

    def grade(self, tasks: Sequence[Task]) -> list[float | None]:
        """One grade per task: 1.0 where equal, 0.0 where not, None where no gold text can be parsed.

        Too slow, too large or unreadable is 0.0. Equal tasks are asked once.
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
        """End all child processes; the next grade starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _one(self, task: Task, end: float) -> float | None:
        for _ in range(2):  # a worker can die between two tasks (its memory limit): asked once more
            left = end - time.monotonic()
            if left <= 0:
                self._count("skipped", "the time budget of a step is spent")
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
                self._count("timed_out", f"a comparison took math-verify over {self.timeout:g} s")
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
            logger.warning("headwatch: %s; such answers count as wrong (counted in the log)", what)
