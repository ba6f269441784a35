"""Compare mathematical answers with math-verify in a child process that a timer can kill.

A completion can contain anything, and sympy does not finish `10^{10^{10}}`. math-verify's own timeout is an alarm
signal, which works only in the main thread and does not interrupt a long multiplication. Killing a child process
(math_worker.py) works from any thread. Each training process starts one on first use, and a new one after a timeout.
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
START_SECONDS = 120.0  # sympy is large, and many ranks may load it from one disk at the same time


class MathGrader:
    """Grade completions one by one, each within `timeout` seconds. Thread-safe.

    Attributes:
        timed_out: number of completions that exceeded the time limit and were graded as wrong.
    """

    def __init__(self, timeout: float = TIMEOUT_SECONDS) -> None:
        self.timeout, self.timed_out = timeout, 0
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None
        self._owner = 0  # process that started the worker; a fork must not use its pipes

    def grade(self, gold: Sequence[str], text: str, answer: str = "") -> float | None:
        """Compare the answer in `text` with the first parseable text of `gold`.

        Args:
            gold: texts that contain the right answer, in order of preference.
            text: the completion, read as open-r1 does (LaTeX only).
            answer: the part of `text` that is only its answer, or ""; read first, in any notation.

        Returns:
            1.0 if equal, else 0.0, also for a completion that is too slow, too large or unreadable. None if no text of
            `gold` can be parsed.
        """
        task = json.dumps({"gold": list(gold), "text": text, "answer": answer})
        with self._lock:
            for _ in range(2):  # retry once: the worker may have died at its memory limit
                worker = self._running()
                reply, late = self._ask(worker, task, self.timeout)
                if reply:
                    return cast("float | None", json.loads(reply))
                self._stop()
                if late:
                    break
            self.timed_out += late
            if self.timed_out == 1 and late:
                logger.warning(
                    "headwatch: math-verify took more than %g s for a completion, which is graded as wrong",
                    self.timeout,
                )
        return 0.0

    def close(self) -> None:
        """Stop the child process; the next call of `grade` starts a new one."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._owner != os.getpid():
            self._worker = None
        if self._worker is None or self._worker.poll() is not None:
            if find_spec("math_verify") is None:
                raise UserError("the accuracy reward needs math-verify: pip install 'headwatch[train]'")
            script = Path(__file__).with_name("math_worker.py")
            # -P keeps the script's folder, which has modules named data and options, off the child's sys.path.
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
        """The worker's next line ("" if it died), and whether the timer killed it."""
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
        except OSError:  # the worker died
            return "", late.is_set()
        finally:
            timer.cancel()

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and self._owner == os.getpid():
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(OSError):  # unsent data for a dead worker
                    cast(IO[str], pipe).close()
