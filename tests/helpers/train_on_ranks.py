"""A training for torchrun: `torchrun --nproc-per-node 2 train_on_ranks.py ORDER.json`. gloo, on the CPU.

The order says what to do; every rank writes what it ended with beside it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from headwatch import HeadWatchCallback
from headwatch.attribution.metrics import Reads, logit_diff
from helpers.tiny_trainers import TRAINERS, trained_weights


class FailsOn:
    """A user's metric that raises on one rank only, from its n-th call on."""

    def __init__(self, rank: int, call: int) -> None:
        self.calls, self.rank, self.call = 0, rank, call

    def __call__(self, logits: torch.Tensor, clean_logits: torch.Tensor, reads: Reads) -> torch.Tensor:
        self.calls += 1
        if int(os.environ["RANK"]) == self.rank and self.calls >= self.call:
            raise ArithmeticError("fails on one rank only")
        return logit_diff(logits, clean_logits, reads)


class RecordFails(TrainerCallback):
    """Takes the record's folder away on the main process after some steps: its disk is full, say."""

    def __init__(self, watch: HeadWatchCallback, step: int) -> None:
        self.watch, self.step = watch, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.watch.run is not None:
            self.watch.run.path = self.watch.run.path / "gone"


def main(order: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name, run in order["runs"].items():
        callbacks: list[TrainerCallback] = []
        if run.get("watch") is not None:
            options = dict(run["watch"])
            if fails := options.pop("fails_on", None):
                options["scoring"] = {**options.get("scoring", {}), "metric": FailsOn(*fails)}
            watch = HeadWatchCallback(["addition", "recall"], n_pairs=8, **options)
            callbacks.append(watch)
            if "record_fails" in run:
                callbacks.append(RecordFails(watch, run["record_fails"]))
        trainer = TRAINERS[run["kind"]](Path(order["model"]), out / name, callbacks, **run.get("changes", {}))
        trainer.train(resume_from_checkpoint=run.get("resume"))
        assert torch.distributed.get_world_size() == 2
        torch.save(trained_weights(trainer), out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    main(json.loads(path.read_text()), path.parent)
    torch.distributed.destroy_process_group()
