"""Trainings for torchrun, sharded by FSDP2 or ZeRO-3: `torchrun --nproc-per-node 2 train_sharded.py ORDER.json`.

The environment selects the sharding, as `accelerate launch` does. Every rank saves what it ended with.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from helpers.cpu_accelerator import treat_cpu_processes_as_devices

if os.environ.get("SHARDING") != "DDP":  # accelerate itself runs DDP on CPU processes
    treat_cpu_processes_as_devices()

import torch
from transformers import TrainerCallback

from headwatch import HeadWatchCallback
from headwatch.model.whole_weights import sharding, whole_weights
from helpers.tiny_trainers import TRAINERS
from helpers.train_on_ranks import FailsOn


class Dies(TrainerCallback):
    """Kills one process at the beginning of a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if int(os.environ["RANK"]) == self.rank and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(order: dict[str, Any], out: Path) -> None:
    rank = int(os.environ["RANK"])
    for name, run in order["runs"].items():
        callbacks: list[TrainerCallback] = []
        if run.get("watch") is not None:
            options = dict(run["watch"])
            if fails := options.pop("fails_on", None):
                options["scoring"] = {**options.get("scoring", {}), "metric": FailsOn(*fails)}
            callbacks.append(HeadWatchCallback(["addition", "recall"], n_pairs=8, **options))
        if "dies" in run:
            callbacks.append(Dies(*run["dies"]))
        changes = {"use_cpu": os.environ.get("SHARDING") == "DDP", **run.get("changes", {})}
        trainer = TRAINERS[run["kind"]](Path(order["model"]), out / name, callbacks, **changes)
        trainer.train(resume_from_checkpoint=run.get("resume"))
        with whole_weights(trainer.model, trainer.optimizer):
            weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        logs = [
            {k: v for k, v in row.items() if k in ("loss", "grad_norm", "reward")} for row in trainer.state.log_history
        ]
        torch.save({"weights": weights, "logs": logs, "sharding": sharding(trainer.model)}, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    main(json.loads(path.read_text()), path.parent)
    torch.distributed.destroy_process_group()
