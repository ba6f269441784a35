"""The shardings and trainings of benchmarks/processes.py."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.cpu_accelerator import FSDP2, HYBRID, zero

START_LIMIT = 240  # seconds until the first cell of a job has ended
CELL_LIMIT = 180  # seconds per cell
LOST: dict[str | int, str] = {"begin": "before the base probe", "probe": "in the base probe", 2: "between probes"}
"""When rank 1 is killed: before its second step, if not in a probe."""
QUANTISED = ("FSDP2", "DDP")  # the shardings with 4-bit weights


@dataclass(frozen=True)
class Sharding:
    """One way to divide the model."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    processes: int = 2
    free: int | None = None  # bytes that each process takes to be free for gathered weights

    @property
    def wraps(self) -> bool:
        """Whether accelerate offers torch's checkpoint_wrapper."""
        return self.name.startswith("FSDP2")


@dataclass(frozen=True)
class Cell:
    """One row of the table: a kind of training, with and without the callback."""

    sharding: Sharding
    kind: str
    weights: str
    checkpointing: str
    resumes: bool = False
    fails: bool = False

    def key(self) -> dict[str, Any]:
        """What identifies the row."""
        return {"row": "cell", "kind": self.kind, "weights": self.weights, "checkpointing": self.checkpointing}

    def name(self, what: str) -> str:
        """The name of one of its trainings."""
        return f"{self.kind}-{self.weights}-{self.checkpointing}-{what}"

    def runs(self) -> dict[str, Any]:
        """Its trainings, by name."""
        changes = {**self.sharding.changes, **({self.weights.lower(): True} if self.weights != "full" else {})}
        changes["max_steps"] = 4
        if self.kind == "grpo":
            changes["generation_batch_size"] = 4 * self.sharding.processes
        changes |= {"gradient_checkpointing": self.checkpointing == "transformers"}
        if self.resumes:
            changes |= {"save_strategy": "steps", "save_steps": 2}
        run: dict[str, Any] = {"kind": self.kind, "changes": changes}
        if self.sharding.free is not None:
            run["free"] = self.sharding.free
        if self.sharding.wraps:
            wrapper = "true" if self.checkpointing == "checkpoint_wrapper" else "false"
            run["environment"] = {"FSDP_ACTIVATION_CHECKPOINTING": wrapper}
        watch = {"every": 2, "strict": True}
        found = {"plain": run, "watched": {**run, "watch": watch}}
        if self.resumes:
            found |= {
                "plain-resumed": {**run, "resume": [self.name("plain"), 2]},
                "watched-resumed": {**run, "watch": watch, "resume": [self.name("watched"), 2]},
            }
        if self.fails:
            found["fails"] = {**run, "watch": {"every": 1, "scoring": {"edges": False}, "fails_on": [1, 8]}}
        return {self.name(what): each for what, each in found.items()}


def shardings() -> list[Sharding]:
    """Every way to divide the model."""
    return [
        Sharding("FSDP2", FSDP2),
        Sharding("ZeRO-3", {}, {"deepspeed": zero(3)}),
        Sharding("FSDP2, offload", FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}),
        Sharding("FSDP2, hybrid", FSDP2 | HYBRID, processes=4),
        Sharding("FSDP2, no reshard", FSDP2 | {"FSDP_RESHARD_AFTER_FORWARD": "false"}),
        Sharding("FSDP2, layer by layer", FSDP2, free=106_495),  # the whole weights take 106,496
        Sharding("ZeRO-2", {}, {"deepspeed": zero(2)}),
        Sharding("DDP", {"SHARDING": "DDP"}),
    ]


def cells(sharding: Sharding) -> list[Cell]:
    """The rows of one sharding; resuming and a failing rank without activation checkpointing only."""
    found = []
    for checkpointing in ("no", "transformers", *(["checkpoint_wrapper"] if sharding.wraps else [])):
        for kind in ("sft", "grpo"):
            for weights in ("full", "LoRA", *(["QLoRA"] if sharding.name in QUANTISED else [])):
                first = checkpointing == "no" and weights == "full"
                found.append(Cell(sharding, kind, weights, checkpointing, first, first and kind == "sft"))
    return found


def killed_run(sharding: Sharding, when: str | int) -> dict[str, Any]:
    """A training of which rank 1 is killed."""
    changes = {**sharding.changes, "max_steps": 4}
    return {"kind": "sft", "changes": changes, "watch": {"every": 1}, "dies": [1, when]}
