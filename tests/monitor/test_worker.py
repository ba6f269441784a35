"""The worker: a record does not depend on when its jobs run, failures turn probing off, checkpoints and forks wait."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.same_record import MEASURED, OF_THE_PROCESS
from helpers.tiny_trainers import same_weights, save_tiny_model, sft_trainer, trained_weights
from transformers import TrainerCallback

from headwatch import HeadWatchCallback, RunFolder
from headwatch.monitor import recorder
from headwatch.monitor.worker import Job, Worker

# Nearly every change is an event, so that many jobs have something to write.
LAX = {"q": 0.9, "min_change": 0.0, "min_gap_t": 0.0, "require_nonzero_share": False, "confirm": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class LateWorker(Worker):
    """Starts a job only when it is waited for: the latest moment."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Event()

    def submit(self, job: Job) -> None:
        gate = threading.Event()
        super().submit(lambda: gate.wait(60) and job())  # waits for the job before, so opens its gate
        self._gate = gate

    def join(self, timeout: float | None = None) -> None:
        self._gate.set()
        super().join(timeout)


class LogsReward(TrainerCallback):
    """Adds a reward to every row that the trainer logs."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs["reward"] = (7 * state.global_step) % 5 / 5


def record(folder: Path) -> dict[str, Any]:
    """Every file of a record: bytes, and for logs the rows without what a clock decides."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [[(k, v) for k, v in r.items() if k not in MEASURED | OF_THE_PROCESS] for r in rows]
    return found


def test_the_record_does_not_depend_on_when_the_jobs_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once (strict), or each as late as possible, when later rows of the trainer's log are there already."""

    def train(name: str, strict: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        watch = HeadWatchCallback("addition", every=1, scoring={"steps": 1}, n_pairs=8, evidence=LAX, strict=strict)
        trainer = sft_trainer(model, tmp_path / name, [LogsReward(), watch], max_steps=15, learning_rate=0.05)
        trainer.train()
        return record(tmp_path / name / "headwatch"), trained_weights(trainer)

    at_once, weights = train("at-once", strict=True)
    monkeypatch.setattr(recorder, "Worker", LateWorker)
    late, others = train("late", strict=False)
    assert late == at_once
    assert same_weights(weights, others)
    assert len(at_once["events.jsonl"]) > 3
    assert any("coupling/reward/newly_active/rho" in name for name, _ in at_once["scalars.jsonl"][-1])


def test_a_job_that_fails_turns_probing_off_with_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = RunFolder.append_scalars

    def full(self: RunFolder, step: int, values: dict[str, Any]) -> None:
        if step >= 2:
            raise OSError(28, "No space left on device")
        append(self, step, values)

    monkeypatch.setattr(RunFolder, "append_scalars", full)
    trainer = sft_trainer(model, tmp_path, [HeadWatchCallback("addition", every=1, n_pairs=8)])
    trainer.train()
    assert trainer.state.global_step == 5
    (line,) = [r.getMessage() for r in caplog.records if "No space left" in r.getMessage()]
    assert "could not record the last probe; probing is off" in line
    run = RunFolder.open(tmp_path)
    assert run.manifest["status"] == "failed"
    assert run.steps == [0, 1, 2]  # no probe after the one that failed
    assert [row["step"] for row in run.scalars()] == [0, 1]
    assert [row["step"] for row in run.training()] == [1, 2, 3, 4, 5]


def test_a_checkpoint_has_a_complete_record(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    class Saved(TrainerCallback):
        """What is on disk when the checkpoint is written."""

        def on_save(self, *_: Any, **__: Any) -> None:
            seen.append([row["step"] for row in RunFolder.open(tmp_path).scalars()])

    monkeypatch.setattr(recorder, "Worker", LateWorker)
    watch = HeadWatchCallback("addition", every=1, n_pairs=8)
    sft_trainer(model, tmp_path, [watch, Saved()], save_strategy="steps", save_steps=2, max_steps=4).train()
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_jobs_run_without_gradients_and_raise_when_they_are_waited_for() -> None:
    worker, found = Worker(), []

    def job() -> None:
        found.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.ones(1).device.type))
        raise ArithmeticError("in the job")

    with torch.enable_grad(), torch.autocast("cpu"), torch.device("meta"):
        worker.submit(job)
        worker.join()
    assert found == [(False, False, "cpu")]
    with pytest.raises(ArithmeticError, match="in the job"):
        worker.wait()
    worker.wait()  # raised once
    assert torch.is_grad_enabled()


def test_a_fork_waits_for_the_job() -> None:
    """Else a lock that the job holds, of logging say, would stay locked in the child."""
    worker, lock, locked = Worker(), threading.Lock(), threading.Event()

    def job() -> None:
        with lock:
            locked.set()
            threading.Event().wait(0.3)

    worker.submit(job)
    locked.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(blocking=False) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.wait()
