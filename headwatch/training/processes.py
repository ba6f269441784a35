"""The processes that a recipe is for, or runs under: how many, and how they divide the model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headwatch.errors import UserError
from headwatch.model.whole_weights import sharding


@dataclass(frozen=True)
class Processes:
    """How many processes, and into how many parts weights and optimizer are divided.

    Attributes:
        number: processes.
        kind: "FSDP2", "DeepSpeed", "DDP" or "".
        half: whether the forward pass computes in 16 bits, by accelerate's mixed_precision.
    """

    number: int = 1
    kind: str = ""
    half: bool = False

    @property
    def parts(self) -> int:
        """Parts of weights, gradients and optimizer states; 1 if each process holds all of them."""
        return self.number if self.kind == "FSDP2" else 1


def planned(accelerate_config: str | None) -> Processes:
    """The processes of the launcher in force; without one those of the recipe's accelerate file.

    Raises:
        UserError: the file cannot be read.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 or accelerate_config is None:
        fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        half = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") in ("bf16", "fp16")
        return Processes(world, "FSDP2" if fsdp else "DDP" if world > 1 else "", half)
    path = Path(accelerate_config)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        number, kind = int(config["num_processes"]), str(config["distributed_type"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"--accelerate_config {path}: not a file of accelerate that can be read ({error})") from error
    half = config.get("mixed_precision") in ("bf16", "fp16")
    return Processes(number, {"FSDP": "FSDP2", "DEEPSPEED": "DeepSpeed"}.get(kind, "DDP" if number > 1 else ""), half)


def describe_running(trainer: Any) -> str:
    """One line about a training that has begun: how many processes, and what divides the model."""
    number = trainer.args.world_size
    kind = sharding(trainer.model)
    if not kind and str(trainer.accelerator.distributed_type).endswith("DEEPSPEED"):
        kind = f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    kind = kind or ("DDP" if number > 1 else "one process")
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and kind != "FSDP2"
    return f"processes: {number}, sharding: {kind}" + (
        " (FSDP was asked for, but accelerate does not shard on a CPU)" if asked else ""
    )
