"""Every trainer that the docs name, run for real: the one line records probes and leaves the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers.tiny_trainers import same_weights, save_tiny_model, trained_weights
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from headwatch import HeadWatchCallback, RunFolder, UnsupportedModelError

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


TRAINERS: dict[str, Callable[..., Any]] = {
    "DPOTrainer": dpo,
    "KTOTrainer": kto,
    "RLOOTrainer": rloo,
    "ORPOTrainer": orpo,
    "CPOTrainer": cpo,
    "GKDTrainer": gkd,
    "DistillationTrainer": distillation,
    "OnlineDPOTrainer": online_dpo,
    "Trainer": plain_trainer,
    "Seq2SeqTrainer": seq2seq_trainer,
}


def test_a_reward_model_is_refused_in_one_line(tmp_path: Path) -> None:
    from trl import RewardConfig, RewardTrainer

    model = save_tiny_model(tmp_path / "model")
    trainer = RewardTrainer(
        model=str(model),
        args=RewardConfig(**common(tmp_path / "out"), max_length=32),
        train_dataset=Dataset.from_list(PREFERENCES),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[HeadWatchCallback("addition", every=2, n_pairs=8)],
    )
    with pytest.raises(UnsupportedModelError, match="no output matrix over the vocabulary"):
        trainer.train()


@pytest.mark.parametrize("name", list(TRAINERS))
def test_same_weights_and_a_record_in_every_trainer(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    weights = []
    for folder in ("watched", "plain"):
        callbacks = [HeadWatchCallback("addition", every=2, n_pairs=8)] if folder == "watched" else []
        trainer = TRAINERS[name](model, tmp_path / folder, callbacks)
        trainer.train()
        weights.append(trained_weights(trainer))
    assert same_weights(*weights)
    assert not same_weights(weights[0], dict(AutoModelForCausalLM.from_pretrained(model).named_parameters()))
    run = RunFolder.open(tmp_path / "watched")
    assert run.steps == [0, 2, 3]
    assert run.manifest["status"] == "finished"
