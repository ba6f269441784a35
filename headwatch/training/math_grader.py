"""Whether two mathematical answers are the same, decided by math-verify in a child process that can be killed.

A completion can hold anything: `10^{10^{10}}` keeps sympy busy for longer than the training lasts. math-verify's own
timeout is an alarm signal, which works only in a process's main thread and not inside one long multiplication. Here the
work is done by a child (math_worker.py), one to a training process and started on first use, and a timer kills it: that
works from any thread, in every rank, and stops anything. The next completion gets a new child.
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
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

from headwatch.errors import UserError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0  # math-verify's own default for one comparison
START_SECONDS = 120.0  # sympy is large, and many ranks may load it from one disk at once


class MathGrader:
    """Grades completions one after the other, each within `timeout` seconds. Threads may share one.

    Attributes:
        timed_out: how many completions took too long and were called wrong.
    """

    def __init__(self, timeout: float = TIMEOUT_SECONDS) -> None:
        self.timeout, self.timed_out = timeout, 0
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None
        self._owner = 0  # the process that started the worker: a fork must not share its pipes

    def grade(self, gold: Sequence[str], text: str, answer: str = "") -> float | None:
        """1.0 where text's answer equals the first parseable one of gold, 0.0 where not; None where none is parseable.

        answer: the part of text that is nothing but its answer, where there is one: it is read first, as any notation;
        the whole text is read as open-r1 does (LaTeX alone). Too slow, too large or unreadable is 0.0.
        """
        task = json.dumps({"gold": list(gold), "text": text, "answer": answer})
        with self._lock:
            for _ in range(2):  # a worker can have died between two completions (its memory limit): once more
                worker = self._running()
                reply, late = self._ask(worker, task, self.timeout)
                if reply:
                    return cast("float | None", json.loads(reply))
                self._stop()
                if late:
                    break
            self.timed_out += late
            if self.timed_out == 1 and late:
                logger.warning("headwatch: a completion took math-verify over %g s and is called wrong", self.timeout)
        return 0.0

    def close(self) -> None:
        """End the child process; the next grade starts a new one."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._owner != os.getpid():
            self._worker = None
        if self._worker is None or self._worker.poll() is not None:
            if find_spec("math_verify") is None:
                raise UserError("the accuracy reward needs math-verify: pip install 'headwatch[train]'")
            script = Path(__file__).with_name("math_worker.py")
            # -P: the script's folder, full of modules called data and arguments, stays off the child's path.
            self._worker = subprocess.Popen(
                [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._owner = os.getpid()
            atexit.register(self._stop)
            ready, _ = self._ask(self._worker, None, START_SECONDS)
            if ready.strip() != "ready":
                self._stop()
                raise UserError(f"math-verify could not be loaded: try `{sys.executable} -c 'import math_verify'`")
        return self._worker

    @staticmethod
    def _ask(worker: subprocess.Popen[str], task: str | None, seconds: float) -> tuple[str, bool]:
        """The worker's next line, "" where it died; and whether that was by the timer."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            worker.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            if task is not None:
                stdin = cast(IO[str], worker.stdin)
                stdin.write(task + "\n")
                stdin.flush()
            return cast(IO[str], worker.stdout).readline(), late.is_set()
        except OSError:  # it is gone
            return "", late.is_set()
        finally:
            timer.cancel()

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and self._owner == os.getpid():
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(OSError):  # what was still unsent to a dead worker
                    cast(IO[str], pipe).close()
