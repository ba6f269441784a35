"""Trainings for torchrun, sharded by FSDP2 or ZeRO-3: `torchrun --nproc-per-node 2 train_sharded.py ORDER.json`.

The environment selects the sharding, as `accelerate launch` does. Every rank saves what it ended with.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from helpers.cpu_accelerator import treat_cpu_processes_as_devices

treat_cpu_processes_as_devices()

import torch  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from headwatch import HeadWatchCallback  # noqa: E402
from headwatch.model.whole_weights import sharding, whole_weights  # noqa: E402
from helpers.tiny_trainers import TRAINERS  # noqa: E402
from helpers.train_on_ranks import FailsOn  # noqa: E402


def main(order: dict[str, Any], out: Path) -> None:
    rank = int(os.environ["RANK"])
    for name, run in order["runs"].items():
        callbacks: list[TrainerCallback] = []
        if run.get("watch") is not None:
            options = dict(run["watch"])
            if fails := options.pop("fails_on", None):
                options["scoring"] = {**options.get("scoring", {}), "metric": FailsOn(*fails)}
            callbacks.append(HeadWatchCallback(["addition", "recall"], n_pairs=8, **options))
        changes = {"use_cpu": False, **run.get("changes", {})}
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
