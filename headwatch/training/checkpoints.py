"""Checkpoints of a recipe: which one a run goes on from, in which order of rows, and which keep their optimizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from headwatch.errors import UserError
from headwatch.monitor.resume import read_sidecar

STATE = "trainer_state.json"  # the last of a checkpoint's files that the Trainer writes
OPTIMIZER = ("optimizer.pt", "optimizer.bin")  # Trainer, FSDP with a full state
OPTIMIZERS = (*OPTIMIZER, "optimizer_0", "global_step*")  # FSDP, DeepSpeed: folders


def resumed_from(training: Any) -> str | None:
    """The checkpoint that a run goes on from as `resume_from_checkpoint` says; None for the beginning.

    "true" or "last" is the last one in output_dir that was written to its end: a process that is killed while it writes
    leaves another behind it.

    Raises:
        UserError: no such checkpoint, or one that training would not go on from as it was (without its optimizer).
    """
    asked = training.resume_from_checkpoint
    if asked in (None, "", "false", "False", False):
        return None
    if str(asked).lower() not in ("true", "last"):
        folder = Path(str(asked)).expanduser()
        if not (folder / STATE).is_file():
            raise UserError(f"--resume_from_checkpoint {folder}: no checkpoint there ({STATE} is missing)")
    else:
        found = checkpoints(Path(training.output_dir))
        if not found:
            raise UserError(f"--resume_from_checkpoint {asked}: no checkpoint in {training.output_dir}")
        whole = [checkpoint for checkpoint in found if is_whole(checkpoint)]
        if not whole:
            raise UserError(
                f"--resume_from_checkpoint {asked}: {found[-1]} was not written to its end, and there is no other; "
                "leave the option out to begin anew"
            )
        folder = whole[-1]
    if not any(any(folder.glob(name)) for name in OPTIMIZERS):
        raise UserError(
            f"--resume_from_checkpoint {folder}: it holds no optimizer, so training would not go on as it was; "
            "to be able to resume, train with --save_only_model false (and see --keep_optimizers)"
        )
    return str(folder)


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, by step."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def wandb_variables(checkpoint: str, output_dir: str) -> dict[str, str]:
    """The environment by which wandb goes on with the run that was live when the checkpoint was written.

    {} where there was none, and for the checkpoint of another output_dir: that is another run.
    """
    before = (read_sidecar(Path(checkpoint)) or {}).get("wandb") or {}
    if not before.get("id") or Path(checkpoint).parent.resolve() != Path(output_dir).resolve():
        return {}
    return {"WANDB_RUN_ID": str(before["id"]), "WANDB_RESUME": "allow"}


def keep_order(trainer: Any, checkpoint: str) -> None:
    """Let a GRPOTrainer go on with the rows that an uninterrupted run would have taken.

    TRL draws every epoch's order from one generator, which begins anew in a new process and which no checkpoint holds
    (RepeatSampler, trl 1.16): the second epoch would see the first one's order again. The orders of the finished epochs
    are drawn, and left.
    """
    epoch = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8")).get("epoch") or 0.0
    make = trainer._get_train_sampler

    def sampler(*arguments: Any, **options: Any) -> Any:
        made = make(*arguments, **options)
        for _ in range(int(epoch) if getattr(made, "shuffle", False) else 0):
            torch.randperm(made.num_samples, generator=made.generator)
        return made

    trainer._get_train_sampler = sampler


class KeepOptimizers(TrainerCallback):
    """Removes the optimizer from all but the last `keep` checkpoints, whose weights stay.

    The optimizer is two thirds of a checkpoint, and only the last ones are ever resumed from. It is removed after a
    newer checkpoint has been written to its end.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint more: one optimizer less."""
        if not state.is_world_process_zero:
            return
        for checkpoint in [c for c in checkpoints(Path(args.output_dir)) if is_whole(c)][: -self.keep]:
            for name in OPTIMIZER:
                (checkpoint / name).unlink(missing_ok=True)
