"""The scripts in examples/ run as written."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

import trl

from headwatch import RunFolder
from headwatch.training.smoke import write_stand_ins

FOLDER = Path(__file__).parents[2] / "examples"
ON_THE_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", "2"]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-ins")
    write_stand_ins(folder)
    texts = [f"Compute {a}+{a}. Answer: \\boxed{{{2 * a}}}" for a in range(10, 42)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "prompts").mkdir()
    prompts = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    (folder / "prompts" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "rows").mkdir()
    (folder / "rows" / "train.jsonl").write_text((folder / "texts.jsonl").read_text())
    return folder


def run(monkeypatch, name, *arguments):
    for trainer in ("SFTTrainer", "GRPOTrainer"):  # two examples replace them; restored after the test
        monkeypatch.setattr(trl, trainer, getattr(trl, trainer))
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(FOLDER / name), run_name="__main__")


@pytest.mark.parametrize("name", ["sft_trainer.py", "transformers_trainer.py"])
def test_scripts_with_the_added_line(name, stand_ins, tmp_path, monkeypatch):
    run(monkeypatch, name, stand_ins / "model", stand_ins / "texts.jsonl", tmp_path)
    assert RunFolder.open(tmp_path).steps == [0, 10, 20]


def test_trls_own_sft_script(stand_ins, tmp_path, monkeypatch):
    where = ["--model_name_or_path", stand_ins / "model", "--dataset_name", stand_ins / "rows"]
    run(monkeypatch, "trl_sft.py", *where, "--output_dir", tmp_path, *ON_THE_CPU)
    assert RunFolder.open(tmp_path).steps == [0, 2]


def test_trls_own_grpo_script_with_a_reward_of_ours(stand_ins, tmp_path, monkeypatch):
    where = ["--model_name_or_path", stand_ins / "model", "--dataset_name", stand_ins / "prompts"]
    options = [
        "--num_generations",
        "4",
        "--per_device_train_batch_size",
        "4",
        "--max_completion_length",
        "8",
        "--logging_steps",
        "1",
    ]
    rewards = ["--reward_funcs", "headwatch.training.rewards.tag_count"]
    run(monkeypatch, "trl_grpo.py", *where, "--output_dir", tmp_path, *options, *rewards, *ON_THE_CPU)
    record = RunFolder.open(tmp_path)
    assert record.steps == [0, 2]
    assert any("rewards/tag_count/mean" in row for row in record.training())
