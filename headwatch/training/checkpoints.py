"""Checkpoints of a recipe: find the one to resume, restore the order of rows, delete old optimizer states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from headwatch.errors import UserError
from headwatch.monitor.resume import read_sidecar

STATE = "trainer_state.json"  # the last file that the Trainer writes
# Files of the Trainer, and of FSDP with a full state; folders of FSDP with a sharded state, and of DeepSpeed.
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")


def checkpoint_to_resume(training: Any) -> str | None:
    """Find the checkpoint that `resume_from_checkpoint` names.

    Args:
        training: the training arguments. "true" or "last" is the last complete checkpoint in output_dir; a process that
            is killed while it writes leaves an incomplete one.

    Returns:
        The checkpoint's path; None to train from the beginning.

    Raises:
        UserError: there is no such checkpoint, or it has no optimizer state.
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
        complete = [checkpoint for checkpoint in found if is_complete(checkpoint)]
        if not complete:
            raise UserError(
                f"--resume_from_checkpoint {asked}: {found[-1]} is incomplete, and there is no other; "
                "omit the option to start again"
            )
        folder = complete[-1]
    if not any(any(folder.glob(name)) for name in OPTIMIZERS):
        raise UserError(
            f"--resume_from_checkpoint {folder}: it has no optimizer state, which an exact resume needs; "
            "train with --save_only_model false (and see --keep_optimizers)"
        )
    return str(folder)


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, sorted by step."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def is_complete(checkpoint: Path) -> bool:
    """Whether the Trainer finished writing a checkpoint."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def wandb_variables(checkpoint: str, output_dir: str) -> dict[str, str]:
    """Environment variables with which wandb resumes the run that was logged when the checkpoint was written.

    {} if there was none, or if the checkpoint is from another output_dir, hence from another run.
    """
    previous = (read_sidecar(Path(checkpoint)) or {}).get("wandb") or {}
    if not previous.get("id") or Path(checkpoint).parent.resolve() != Path(output_dir).resolve():
        return {}
    return {"WANDB_RUN_ID": str(previous["id"]), "WANDB_RESUME": "allow"}


def skip_finished_epochs(trainer: Any, checkpoint: str) -> None:
    """Make a resumed GRPOTrainer use the rows that an uninterrupted run would use.

    TRL draws the order of each epoch from one generator, which no checkpoint stores (RepeatSampler, trl 1.16). A new
    process would repeat the first epoch's order, so the orders of the finished epochs are drawn and discarded.
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
    """Delete the optimizer state of checkpoints older than the last `keep`; their weights stay.

    The optimizer state is two thirds of a checkpoint; FSDP and DeepSpeed store it in folders. It is deleted once a
    newer checkpoint is complete.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delete the optimizer state of checkpoints older than the last `keep`."""
        if not state.is_world_process_zero:
            return
        for checkpoint in [c for c in checkpoints(Path(args.output_dir)) if is_complete(c)][: -self.keep]:
            for found in [path for name in _deletable(checkpoint) for path in checkpoint.glob(name)]:
                if found.is_dir():
                    shutil.rmtree(found, ignore_errors=True)
                else:
                    found.unlink(missing_ok=True)


def _deletable(checkpoint: Path) -> tuple[str, ...]:
    """The names of a checkpoint's optimizer state; DeepSpeed's folder only if the weights are elsewhere as well."""
    has_weights = any(any(checkpoint.glob(f"{name}*")) for name in ("model", "pytorch_model", "adapter_model"))
    return OPTIMIZERS if has_weights else tuple(name for name in OPTIMIZERS if name != "global_step*")
