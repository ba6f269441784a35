"""Trainings for torchrun, sharded by FSDP2 or ZeRO-3: `torchrun --nproc-per-node 2 train_sharded.py ORDER.json`.

The environment selects the sharding, as `accelerate launch` does. Every rank saves what it ended with.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from helpers.cpu_accelerator import treat_cpu_processes_as_devices, without_compiled_deepspeed

if os.environ.get("SHARDING") != "DDP":  # accelerate itself runs DDP on CPU processes
    treat_cpu_processes_as_devices()

import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import TrainerCallback

from headwatch import HeadWatchCallback
from headwatch.attribution.metrics import Reads, logit_diff
from headwatch.model import whole_weights as gathering
from headwatch.model.hooks import overridden
from headwatch.model.whole_weights import sharding, whole_weights
from headwatch.training.processes import describe_running
from helpers.tiny_trainers import TRAINERS
from helpers.train_on_ranks import FailsOn


class Dies(TrainerCallback):
    """Kills or stops one process: when training begins, at the beginning of a step, or (as a metric) in a probe."""

    def __init__(self, rank: int, when: str | int, note: Path, how: str = "SIGKILL") -> None:
        self.rank, self.when, self.note, self.how, self.calls = rank, when, note, how, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._now("begin")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._now(state.global_step)

    def __call__(self, logits: torch.Tensor, clean_logits: torch.Tensor, reads: Reads) -> torch.Tensor:
        self.calls += 1
        self._now("probe" if self.calls == 3 else "")
        return logit_diff(logits, clean_logits, reads)

    def _now(self, when: str | int) -> None:
        if int(os.environ["RANK"]) == self.rank and when == self.when:
            self.note.touch()  # when it died
            os.kill(os.getpid(), getattr(signal, self.how))


def start_over(environment: dict[str, str]) -> None:
    """Set variables as a launcher would, and let accelerate read them again in this process."""
    if all(os.environ.get(name) == value for name, value in environment.items()):
        return
    os.environ.update(environment)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def copy_run(source: Path, target: Path) -> None:
    """Copy a run's folder on the main process, for a training that is resumed from one of its checkpoints."""
    if int(os.environ["RANK"]) == 0:
        shutil.copytree(source, target)
    torch.distributed.barrier()


def main(order: dict[str, Any], out: Path) -> None:
    """Run the trainings of an order in this process, one after the other.

    A run: "kind", "changes" of the trainer's arguments, "watch" (options of the callback), "dies" (rank, when, signal),
    "environment", "free" (bytes that each process takes to be free, for two layers at a time), and "resume": the name
    of an earlier run and the step of its checkpoint.
    """
    rank = int(os.environ["RANK"])
    if any("deepspeed" in run.get("changes", {}) for run in order["runs"].values()):
        without_compiled_deepspeed()
    for name, run in order["runs"].items():
        start_over(run.get("environment", {}))
        callbacks: list[TrainerCallback] = []
        if "dies" in run:
            dies = Dies(*run["dies"][:2], out / f"{name}.dies", *run["dies"][2:])
            callbacks.append(dies)  # before the callback
        if run.get("watch") is not None:
            options = dict(run["watch"])
            if fails := options.pop("fails_on", None):
                options["scoring"] = {**options.get("scoring", {}), "metric": FailsOn(*fails)}
            if "dies" in run:
                options["scoring"] = {**options.get("scoring", {}), "metric": dies}
            callbacks.append(HeadWatchCallback(**{"probes": ["addition", "recall"], "n_pairs": 8, **options}))
        checkpoint = None
        if "resume" in run:
            source, step = run["resume"]
            copy_run(out / source, out / name)
            checkpoint = str(out / name / f"checkpoint-{step}")
        changes = {"use_cpu": os.environ.get("SHARDING") == "DDP", **run.get("changes", {})}
        trainer = TRAINERS[run["kind"]](Path(order["model"]), out / name, callbacks, **changes)
        free = {"free_memory": lambda _, own=run["free"]: own, "LAYERS_AT_ONCE": 1} if "free" in run else {}
        with overridden(gathering, **free):
            trainer.train(resume_from_checkpoint=checkpoint)
        with whole_weights(trainer.model, trainer.optimizer):
            weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        logs = [
            {k: v for k, v in row.items() if k in ("loss", "grad_norm", "reward")} for row in trainer.state.log_history
        ]
        ended = {"weights": weights, "logs": logs, "sharding": sharding(trainer.model)}
        ended["described"] = describe_running(trainer)
        torch.save(ended, out / f"{name}-{rank}.part")
        os.replace(out / f"{name}-{rank}.part", out / f"{name}-{rank}.pt")  # whole files only
        torch.distributed.barrier()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    main(json.loads(path.read_text()), path.parent)
    torch.distributed.destroy_process_group()
