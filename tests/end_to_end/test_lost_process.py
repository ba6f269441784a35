"""A process of a sharded training is killed or stops: the job ends in bounded time, and the cause is named."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.cpu_accelerator import FSDP2
from helpers.sharded_runs import kill, start
from helpers.tiny_trainers import save_tiny_model

pytestmark = pytest.mark.slow

PATIENCE = 20  # seconds: ddp_timeout
WATCH = {"every": 1, "patching": "none"}
ENDED = "headwatch: rank 1 ended before the others were done; the job ends (seen by rank 0"
STOPPED = "headwatch: rank 1 did not answer within 18 s; the job ends"


def lose(folder: Path, when: str | int, how: str, **run: Any) -> tuple[str, float]:
    """What is printed by a job of which rank 1 is lost, and the seconds from there to its end."""
    save_tiny_model(folder / "model")
    sft = {"kind": "sft", "changes": {"max_steps": 4, "ddp_timeout": PATIENCE}, "watch": WATCH}
    # torchrun ends the other processes when it notices; by default within 0.1 s, before they can print.
    options = ["--monitor-interval", "5"]
    job = start(folder, {"lost": {**sft, "dies": [1, when, how], **run}}, FSDP2, options=options)
    try:
        printed, errors = job.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        kill(job)
        raise
    assert job.returncode != 0
    return printed + errors, time.time() - (folder / "lost.dies").stat().st_mtime


@pytest.mark.parametrize(
    ("when", "how", "line"),
    [
        ("begin", "SIGKILL", ENDED),
        ("probe", "SIGKILL", ENDED),
        ("probe", "SIGSTOP", STOPPED),
        (2, "SIGKILL", None),  # in the training's own exchange, whose error is the backend's
    ],
)
def test_the_job_ends_and_names_the_rank(when: str | int, how: str, line: str | None, tmp_path: Path) -> None:
    printed, seconds = lose(tmp_path, when, how)
    assert printed.count("headwatch: rank 1 ") == (line is not None)
    if line is None:
        assert "Signal 9 (SIGKILL) received" in printed
    else:
        assert line in printed
    assert seconds < PATIENCE + 100  # torchrun waits 30 s for a stopped process; the rest is for a loaded machine


def test_while_layers_are_gathered_one_at_a_time(tmp_path: Path) -> None:
    """There each pass is a collective: the other rank is not left waiting in the middle of it."""
    printed, seconds = lose(tmp_path, "probe", "SIGKILL", free=100_000)
    assert printed.count(ENDED) == printed.count("headwatch: rank 1 ") == 1
    assert seconds < PATIENCE + 100
