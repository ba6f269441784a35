"""Pretrained models under TRL's own defaults (bf16, activation checkpointing): the one line, and nothing else.

The weights are looked for in $HEADWATCH_MODELS, or ~/.cache/headwatch/models; without them these tests are skipped.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.tiny_trainers import same_weights, trained_weights
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch import HeadWatchCallback, ProbeSet, RunFolder, score_edges

MODELS = Path(os.environ.get("HEADWATCH_MODELS", "~/.cache/headwatch/models")).expanduser()


def train(model: str, output: Path, lora: bool, **extra: Any) -> dict[str, Any]:
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"prompt": f"Compute {a}+{b}. Answer: ", "completion": f"\\boxed{{{a + b}}}"}
        for a in range(10, 14)
        for b in range(20, 24)
    ]
    trainer = SFTTrainer(
        model=str(MODELS / model),
        args=SFTConfig(output_dir=str(output), max_steps=2, use_cpu=True, report_to="none", save_strategy="no"),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        **extra,
    )
    assert trainer.args.bf16
    trainer.train()
    return trained_weights(trainer)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # bf16 takes minutes per step on a CPU without instructions for it
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("model", ["smollm2-135m", "gemma-3-270m", "qwen2.5-coder-0.5b"])
def test_one_line_in_a_script_with_the_trainers_defaults(model: str, lora: bool, tmp_path: Path) -> None:
    if not (MODELS / model / "model.safetensors").is_file():
        pytest.skip(f"no weights in {MODELS / model}")
    watched = train(model, tmp_path / "watched", lora, callbacks=[HeadWatchCallback(every=2, n_pairs=8)])
    assert same_weights(watched, train(model, tmp_path / "plain", lora))
    run = RunFolder.open(tmp_path / "watched")
    assert run.steps == [0, 2]
    assert run.manifest["status"] == "finished"


def test_edges_under_autocast_are_those_of_float32(tmp_path: Path) -> None:
    folder = MODELS / "smollm2-135m"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no weights in {folder}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    probes = ProbeSet.generate("recall", AutoTokenizer.from_pretrained(folder), n_pairs=4)
    exact = score_edges(model, probes, steps=2)
    with torch.autocast("cpu", torch.bfloat16):
        edges = score_edges(model, probes, steps=2)
    both = torch.stack([edges.mean().flatten(), exact.mean().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99
