"""Real trainings and commands that can be killed: a process that has imported everything forks one child per order.

Run as a script it reads one JSON object per line from standard input ({"model", "output", ...}, see `train`, or
{"argv"}) and answers with one line: how the child ended. A child kills itself by SIGKILL at its `kill_at`-th dangerous
moment (before and after every file of the record reaches its name, before, amid and after every line of a log, at the
beginning of every pass), so that each can be visited; nothing runs after a SIGKILL, as when a machine is taken away.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Trainings:
    """The forking process, from the outside."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        here = Path(__file__)
        environment["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in here.parents[:3])
        self._process = subprocess.Popen(
            [sys.executable, str(here)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def train(self, model: Path, output: Path, **options: Any) -> dict[str, Any]:
        """One training in a child; {"killed": whether by SIGKILL, "moments": how many it passed, "probed": steps}."""
        self.start(model=str(model), output=str(output), **options)
        return self.ended()

    def command(self, *argv: str, kill_at: int | None = None) -> dict[str, Any]:
        """`headwatch ...` in a child; the answer is that of `train`."""
        self.start(argv=argv, kill_at=kill_at)
        return self.ended()

    def start(self, **order: Any) -> None:
        """Start a child."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def ended(self) -> dict[str, Any]:
        """How the child ended, once it has."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        while answer and not answer.startswith("{"):  # a library's own line
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the forking process has ended: its errors are on standard error")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def trainings() -> Iterator[Trainings]:
    process = Trainings()
    try:
        yield process
    finally:
        process.close()


def _moments(kill_at: int | None, progress: int) -> None:
    """Count the dangerous moments, and die at one of them."""
    from headwatch.io import atomic, jsonl
    from headwatch.monitor import probe_pass
    from headwatch.record import set_aside

    passed = 0

    def moment() -> None:
        nonlocal passed
        passed += 1
        os.pwrite(progress, f"{passed:8d}".encode(), 0)
        if passed == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            moment()
            result = function(*args, **kwargs)
            moment()
            return result

        return wrapped

    class Torn:
        """A log's file whose lines reach the disk in two halves."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> "Torn":
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            half = len(data) // 2
            moment()
            self.file.write(data[:half])
            self.file.flush()
            moment()
            self.file.write(data[half:])
            self.file.flush()
            moment()

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = open(path, mode, *args, **kwargs)  # noqa: SIM115
        return Torn(file) if mode == "ab+" else file

    jsonl.open = opened  # type: ignore[attr-defined]
    set_aside.os = atomic.os = type("os", (), {**vars(os), "replace": around(os.replace), "fsync": around(os.fsync)})  # type: ignore[attr-defined]
    probe_pass.score_by_metric = around(probe_pass.score_by_metric)  # type: ignore[assignment]


def train(
    model: str, output: str, kill_at: int | None = None, resume: str | None = None, steps: int = 7, progress: int = 1
) -> None:
    """An SFT training with a probe at every second step and a checkpoint every third."""
    import torch
    from transformers import TrainerCallback

    from headwatch import HeadWatchCallback
    from helpers.tiny_trainers import sft_trainer

    torch.set_num_threads(1)

    class Tells(TrainerCallback):
        """Comes after the watch: what it has written is a probe that is over."""

        def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.probed(state.global_step)

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % 2 == 0:
                self.probed(state.global_step)

        def probed(self, step: int) -> None:
            os.pwrite(progress, f"{step:8d}".encode(), 8)

    _moments(kill_at, progress)
    watch = HeadWatchCallback(["addition", "recall"], every=2, n_pairs=8, strict=True)
    trainer = sft_trainer(
        Path(model),
        Path(output),
        [watch, Tells()],
        max_steps=steps,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        warmup_steps=0,
        save_strategy="steps",
        save_steps=3,
    )
    trainer.train(resume_from_checkpoint=resume)


def command(argv: list[str], kill_at: int | None = None, progress: int = 1) -> None:
    """One command of the command line."""
    import torch

    from headwatch.cli import main

    torch.set_num_threads(1)
    _moments(kill_at, progress)
    if main(argv):
        raise SystemExit(1)


def _serve() -> None:
    import peft  # noqa: F401
    import trl

    import headwatch.callback
    import headwatch.checkpoints.follow
    import headwatch.report.html  # noqa: F401
    from helpers import tiny_trainers  # noqa: F401

    _ = trl.SFTConfig, trl.SFTTrainer  # imported on first use
    answers = os.dup(1)
    os.dup2(2, 1)  # what the libraries print is no answer
    for line in sys.stdin:
        order = json.loads(line)
        note = os.memfd_create("progress")
        os.pwrite(note, b" " * 16, 0)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                (command if "argv" in order else train)(**order, progress=note)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            os._exit(code)
        status = os.waitpid(child, 0)[1]
        passed, probed = os.pread(note, 8, 0).strip(), os.pread(note, 8, 8).strip()
        os.close(note)
        answer = {
            "killed": os.WIFSIGNALED(status),
            "failed": os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0,
            "moments": int(passed or 0),
            "probed": int(probed) if probed else None,
        }
        os.write(answers, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    _serve()
