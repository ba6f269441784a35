"""Run trainings of tests/helpers/train_sharded.py under torchrun, and read what every process ended with."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def torchrun(
    folder: Path,
    runs: dict[str, Any],
    environment: dict[str, str],
    processes: int = 2,
    timeout: float = 280,
) -> subprocess.CompletedProcess[str]:
    """Run the trainings one after the other in the same processes; the model is in `folder`/model.

    Raises:
        subprocess.TimeoutExpired: they did not end in time; all their processes have been killed.
    """
    job = start(folder, runs, environment, processes)
    try:
        printed, errors = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(job)
        raise
    return subprocess.CompletedProcess(job.args, job.returncode, printed, errors)


def start(
    folder: Path,
    runs: dict[str, Any],
    environment: dict[str, str],
    processes: int = 2,
    output: Any = subprocess.PIPE,
    options: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start the trainings; see `torchrun`. `output`: where the processes write; `options`: of torchrun."""
    order = folder / "order.json"
    order.write_text(json.dumps({"model": str(folder / "model"), "runs": runs}))
    extra = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *extra])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    return subprocess.Popen(
        [*command, *options, str(HERE / "train_sharded.py"), str(order)],
        stdout=output,
        stderr=output,
        text=True,
        env=os.environ | variables | paths | environment,
        start_new_session=True,
    )


def kill(job: subprocess.Popen[str]) -> None:
    """End a job that hangs, with its workers, which torchrun starts in sessions of their own."""
    workers = subprocess.run(["ps", "--ppid", str(job.pid), "-o", "pid="], capture_output=True, text=True).stdout
    for pid in [job.pid, *map(int, workers.split())]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.communicate()


def ended(folder: Path, name: str, rank: int) -> dict[str, Any]:
    """Weights, logs and sharding of one process at the end of a run."""
    return torch.load(folder / f"{name}-{rank}.pt")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs ended with the same weights and logs, bit for bit."""
    weights, others = one["weights"], other["weights"]
    return (
        one["logs"] == other["logs"]
        and weights.keys() == others.keys()
        and all(same_bits(weights[name], others[name]) for name in weights)
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Unlike torch.equal also where packed 4-bit weights, read as floats, are NaN."""
    bits = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*bits)
