"""The demo's post-training with TRL on the CPU: SFT on worked solutions, and GRPO with a reward for the right sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from headwatch.demo.quiet import remove_printer
from headwatch.demo.sums import DEFAULT_REWARDS, Reward, grpo_rows, sample_sums, sft_rows


@dataclass(frozen=True)
class SftStage:
    """SFT on worked solutions, mixed with direct answers so that the training data contains the probes' prompts."""

    steps: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    worked_share: float = 0.5


@dataclass(frozen=True)
class GrpoStage:
    """GRPO on the probes' prompts; the reward is 1 for the exact sum."""

    steps: int = 140
    prompts_per_step: int = 24
    num_generations: int = 8
    max_completion_length: int = 6
    learning_rate: float = 2e-4
    temperature: float = 1.0
    beta: float = 0.0
    num_iterations: int = 1


# TRL's defaults (bf16, activation checkpointing) are meant for accelerators.
CPU_ARGUMENTS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,  # StageBar replaces it
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
}


def train_sft(
    model_folder: str | Path,
    output_dir: str | Path,
    stage: SftStage = SftStage(),
    *,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str | list[str] = "none",
    seed: int = 0,
    **arguments: Any,
) -> SFTTrainer:
    """Train a copy of the model in `model_folder` with SFTTrainer.

    Args:
        model_folder: saved model and tokenizer.
        output_dir: the trainer's output_dir.
        stage: number of steps, batch size, learning rate and share of worked solutions.
        callbacks: added to the trainer.
        report_to: as in SFTConfig.
        seed: seed of the rows and of the trainer.
        arguments: further arguments of SFTConfig.

    Returns:
        The trainer, with the trained model and the log.
    """
    rng = np.random.default_rng([seed, 1])
    rows = sft_rows(sample_sums(rng, stage.steps * stage.batch_size), rng, worked_share=stage.worked_share)
    config = SFTConfig(
        output_dir=str(output_dir),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        max_length=64,
        report_to=report_to,
        seed=seed,
        **{**CPU_ARGUMENTS, **arguments},
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        callbacks=list(callbacks),
    )
    remove_printer(trainer)
    trainer.train()
    return trainer


def train_grpo(
    model_folder: str | Path,
    output_dir: str | Path,
    stage: GrpoStage = GrpoStage(),
    *,
    rewards: Sequence[Reward] = DEFAULT_REWARDS,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str | list[str] = "none",
    seed: int = 0,
    **arguments: Any,
) -> GRPOTrainer:
    """Train a copy of the model in `model_folder` with GRPOTrainer.

    Args:
        model_folder: saved model and tokenizer.
        output_dir: the trainer's output_dir.
        stage: number of steps and prompts, and the settings of sampling and of the loss.
        rewards: reward functions, summed by TRL.
        callbacks: added to the trainer.
        report_to: as in GRPOConfig.
        seed: seed of the prompts and of the trainer.
        arguments: further arguments of GRPOConfig.

    Returns:
        The trainer, with the trained model and the log.
    """
    rng = np.random.default_rng([seed, 2])
    reward_funcs: list[Any] = list(rewards)  # TRL's annotation excludes some callables that it accepts
    rows = grpo_rows(sample_sums(rng, stage.steps * stage.prompts_per_step))
    config = GRPOConfig(
        output_dir=str(output_dir),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.prompts_per_step * stage.num_generations,
        num_generations=stage.num_generations,
        max_completion_length=stage.max_completion_length,
        learning_rate=stage.learning_rate,
        temperature=stage.temperature,
        beta=stage.beta,
        num_iterations=stage.num_iterations,
        report_to=report_to,
        seed=seed,
        **{**CPU_ARGUMENTS, **arguments},
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder),
        reward_funcs=reward_funcs,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        callbacks=list(callbacks),
    )
    remove_printer(trainer)
    trainer.train()
    return trainer
