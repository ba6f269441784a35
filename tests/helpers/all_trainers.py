"""Every trainer that the docs name, on a model of 30,000 parameters, under its own bf16: a run takes about a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from headwatch import HeadWatchCallback
from helpers.async_grpo import async_grpo

PAIRS = [(a, b) for a in range(10, 14) for b in range(20, 23)]
PROMPTS = [{"prompt": f"{a}+{b}="} for a, b in PAIRS]
COMPLETIONS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in PAIRS]
PREFERENCES = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)} for a, b in PAIRS]
JUDGED = [{**row, "label": index % 2 == 0} for index, row in enumerate(COMPLETIONS)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"{a}+{b}="},
            {"role": "assistant", "content": str(a + b)},
        ]
    }
    for a, b in PAIRS
]
SAMPLED = {"max_completion_length": 6, "temperature": 1.0}


def checksum(completions: list[Any], **_: Any) -> list[float]:
    """A reward that almost every other token changes."""
    return [sum(map(ord, str(text))) % 97 / 97 for text in completions]


def common(output: Path) -> dict[str, Any]:
    """Arguments of every trainer here."""
    return {
        **{"output_dir": str(output), "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        **{"use_cpu": True, "bf16": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
    }


def dpo(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(**common(output), max_length=32)
    return _trl(DPOTrainer, arguments, model, PREFERENCES, callbacks)


def kto(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl import KTOConfig, KTOTrainer

    return _trl(KTOTrainer, KTOConfig(**common(output), max_length=32), model, JUDGED, callbacks)


def rloo(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    arguments = RLOOConfig(**common(output), num_generations=4, **SAMPLED)
    return _trl(RLOOTrainer, arguments, model, PROMPTS, callbacks, reward_funcs=checksum)


def orpo(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    arguments = ORPOConfig(**common(output), max_length=32)
    return _trl(ORPOTrainer, arguments, model, PREFERENCES, callbacks)


def cpo(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return _trl(CPOTrainer, CPOConfig(**common(output), max_length=32), model, PREFERENCES, callbacks)


def gkd(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    arguments = GKDConfig(**common(output), max_length=32, max_new_tokens=6, temperature=1.0)
    teacher = AutoModelForCausalLM.from_pretrained(model)
    return _trl(GKDTrainer, arguments, model, CHATS, callbacks, teacher_model=teacher)


def distillation(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl import DistillationConfig, DistillationTrainer

    arguments = DistillationConfig(**common(output), **SAMPLED)
    return _trl(DistillationTrainer, arguments, model, PROMPTS, callbacks, teacher_model=str(model))


def online_dpo(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    arguments = OnlineDPOConfig(**common(output), max_new_tokens=6, max_length=64, temperature=1.0)
    return _trl(OnlineDPOTrainer, arguments, model, PROMPTS, callbacks, reward_funcs=checksum)


def plain_trainer(model: Path, output: Path, callbacks: list[Any]) -> Any:
    return _transformers(Trainer, TrainingArguments(**common(output)), model, callbacks)


def seq2seq_trainer(model: Path, output: Path, callbacks: list[Any]) -> Any:
    return _transformers(Seq2SeqTrainer, Seq2SeqTrainingArguments(**common(output)), model, callbacks)


def _trl(kind: Any, arguments: Any, model: Path, rows: list[Any], callbacks: list[Any], **extra: Any) -> Any:
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=callbacks,
        **extra,
    )


def _transformers(kind: Any, arguments: Any, model: Path, callbacks: list[Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [tokenizer(f"{a}+{b}={a + b}") for a, b in PAIRS]
    for row in rows:
        row["labels"] = list(row["input_ids"])
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=callbacks,
    )


def sft(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    return _trl(SFTTrainer, SFTConfig(**common(output), max_length=32), model, COMPLETIONS, callbacks)


def grpo(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(**common(output), num_generations=4, **SAMPLED)
    return _trl(GRPOTrainer, arguments, model, PROMPTS, callbacks, reward_funcs=checksum)


def reward(model: Path, output: Path, callbacks: list[Any]) -> Any:
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(
        model=str(model),
        args=RewardConfig(**common(output), max_length=32),
        train_dataset=Dataset.from_list(PREFERENCES),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=callbacks,
    )


TRAINERS: dict[str, Callable[..., Any]] = {
    "SFTTrainer": sft,
    "GRPOTrainer": grpo,
    "DPOTrainer": dpo,
    "KTOTrainer": kto,
    "RLOOTrainer": rloo,
    "ORPOTrainer": orpo,
    "CPOTrainer": cpo,
    "GKDTrainer": gkd,
    "DistillationTrainer": distillation,
    "OnlineDPOTrainer": online_dpo,
    "AsyncGRPOTrainer": lambda model, output, callbacks: async_grpo(model, output, callbacks, common(output)),
    "Trainer": plain_trainer,
    "Seq2SeqTrainer": seq2seq_trainer,
}
"""Trainers that record probes and end with the same weights as without the callback."""

OFF: dict[str, Callable[..., Any]] = {"RewardTrainer": reward}
"""Trainers whose model cannot be probed: the callback turns probing off with one line."""


def trained(name: str, model: Path, output: Path, watch: bool) -> Any:
    """A finished training of 3 steps, with or without the callback."""
    callbacks = [HeadWatchCallback("addition", every=2, n_pairs=8)] if watch else []
    trainer = (TRAINERS | OFF)[name](model, output, callbacks)
    trainer.train()
    return trainer
