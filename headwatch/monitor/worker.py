"""A thread for what is done after a probe while training continues, one job at a time.

Every job has a thread of its own. It is no daemon, so a process that ends, by an exception too, waits for it. Gradients
are off in a job; autocast and torch's default device belong to other threads and do not reach it.

A fork copies only the thread that forks, and locks that another thread holds stay locked in the child. So a fork (by a
DataLoader that starts its workers, say) waits for running jobs first, for at most FORK_SECONDS.
"""

import os
import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context

import torch

FORK_SECONDS = 10.0
NAME = "headwatch-record"

Job = Callable[[], object]

_WORKERS: weakref.WeakSet["Worker"] = weakref.WeakSet()


class Worker:
    """Runs jobs one after another, each in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        _WORKERS.add(self)

    def submit(self, job: Job) -> None:
        """Start a job, with this thread's context variables.

        Raises:
            BaseException: what the job before it raised; the new one is not started.
        """
        self.wait()
        context = copy_context()
        thread = threading.Thread(target=lambda: self._run(lambda: context.run(job)), name=NAME, daemon=False)
        thread.start()
        self._thread = thread

    def wait(self) -> None:
        """Wait until the job has ended.

        Raises:
            BaseException: what it raised, once.
        """
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def join(self, timeout: float | None = None) -> None:
        """Wait until the job has ended, for at most `timeout` seconds; an exception is kept for `wait`."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self, job: Job) -> None:
        try:
            with torch.no_grad():
                job()
        except BaseException as error:
            self._error = error


def join_all(timeout: float | None = None) -> None:
    """Wait until the jobs of all workers of this process have ended; exceptions are kept."""
    for worker in list(_WORKERS):
        worker.join(timeout)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: join_all(FORK_SECONDS))
