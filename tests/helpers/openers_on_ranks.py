"""Runs for torchrun: `torchrun --nproc-per-node 2 openers_on_ranks.py ORDER.json`. gloo, on the CPU."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from headwatch import HeadWatchCallback, Openers
from helpers.tiny_trainers import sft_trainer, trained_weights


def main(order: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name, run in order["runs"].items():
        watch = None
        if run["openers"] is not None:
            if run.get("only_here") is not None and rank != 0:
                run["openers"]["questions"] = "nowhere.jsonl"  # read on the main process alone
            watch = HeadWatchCallback(
                ["addition", "openers"], every=2, n_pairs=9, strict=True, openers=Openers(**run["openers"])
            )
        trainer = sft_trainer(Path(order["model"]), out / name, [watch] if watch else [], **run.get("changes", {}))
        trainer.train(resume_from_checkpoint=run.get("resume"))
        assert torch.distributed.get_world_size() == 2
        torch.save(trained_weights(trainer), out / f"{name}-{rank}.pt")
        if watch is not None and watch.probes is not None:
            (out / f"{name}-{rank}.txt").write_text(watch.probes.fingerprint)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    main(json.loads(path.read_text()), path.parent)
    torch.distributed.destroy_process_group()
