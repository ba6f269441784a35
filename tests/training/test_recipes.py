"""Every recipe: a comment per option, --dry-run and --smoke, with a small random model and local rows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("trl")
pytest.importorskip("math_verify")

from headwatch import RunFolder
from headwatch.training.launch import main, run
from headwatch.training.options import parse, read_recipe
from headwatch.training.smoke import write_stand_ins

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.yaml"))
GSM8K = FOLDER.joinpath("../../shared/data/gsm8k_train.jsonl").resolve()
QWEN = "qwen2.5-math-1.5b/"
TWO = [name for name in RECIPES if "_2gpu" in name]
VARIANTS = ("_lr2e-5", "_lora24gb", "_2gpu", "_8gpu")  # of recipes that the suite runs; `make smoke` runs all


def is_variant(name):
    return name.endswith(tuple(f"{ending}.yaml" for ending in VARIANTS)) and "grpo_gsm8k_lora" not in name


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-ins")
    write_stand_ins(folder)
    return folder


def test_all_recipes_exist():
    names = {f"{QWEN}{run}{on}.yaml" for run in ("sft_openr1", "grpo_openr1", "grpo_openr1_lr2e-5", "grpo_gsm8k")
             for on in ("", "_2gpu", "_lora24gb")}  # fmt: skip
    llama = {f"llama-3.2-1b-instruct/{run}_openr1.yaml" for run in ("sft", "grpo")}
    seven = {f"qwen2.5-math-7b/{run}.yaml" for run in ("sft_openr1_2gpu", "sft_openr1_8gpu", "grpo_openr1_8gpu")}
    assert set(RECIPES) == names | llama | seven | {f"smollm2-135m/{run}_gsm8k.yaml" for run in ("sft", "grpo")}


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_has_a_comment_and_the_header_names_the_file(name):
    text = (FOLDER / name).read_text()
    assert f"recipes/{name}" in text
    written = yaml.safe_load(text)
    block = written.pop("headwatch", {})
    groups = [value for value in block.values() if isinstance(value, dict)]
    options = set(written) | {name for name, value in block.items() if not isinstance(value, dict)}
    for option in options.union(*groups) - {"method", "extends"}:
        line = re.search(rf"^ *{option}:.*$", text, re.MULTILINE)
        assert line is not None
        assert re.search(r"\s# \S", line[0]), f"{name}: {option} has no comment"


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run(name, stand_ins, capsys):
    """With the recipe's options, except a model, rows and tokens that need no network."""
    like = "gsm8k" if "gsm8k" in name else "openr1"
    local = ["--model_name_or_path", str(stand_ins / "model"), "--dataset_name", str(stand_ins / f"{like}.jsonl")]
    method = read_recipe(FOLDER / name)["method"]
    bytewise = ["--stop_tokens", "<|im_end|>"] + ["--max_prompt_tokens", "4096"] * (method == "grpo")
    local += ["--headwatch.openers.questions", str(stand_ins / "questions.jsonl")]
    assert main([str(FOLDER / name), "--dry_run", *local, *bytewise]) == 0
    said = capsys.readouterr().out
    for line in ("model", "data", "step", "steps", "tokens", "memory", "probes", "checkpoints", "record", "logs"):
        assert re.search(rf"^  {line} ", said, re.MULTILINE), line


@pytest.mark.parametrize(
    ("name", "world", "rows", "step_rows", "steps"),
    [
        ("sft_openr1", 1, 6667, 32, 1045),  # the paper's last checkpoint is at 1,042
        ("sft_openr1_2gpu", 2, 6667, 32, 1045),
        ("grpo_openr1", 1, 6667, 8, 2499),  # the paper: about 2,500
        ("grpo_openr1_2gpu", 2, 6667, 8, 2499),
        ("grpo_openr1_lora24gb", 1, 6667, 8, 2499),
        ("grpo_gsm8k", 1, 7473, 8, 934),
        ("grpo_gsm8k_2gpu", 2, 7473, 8, 934),
        ("grpo_gsm8k_lora24gb", 1, 7473, 8, 934),
        ("../qwen2.5-math-7b/sft_openr1_2gpu", 2, 6667, 32, 1045),
        ("../qwen2.5-math-7b/sft_openr1_8gpu", 8, 6667, 32, 1045),
        ("../qwen2.5-math-7b/grpo_openr1_8gpu", 8, 6667, 8, 2499),
    ],
)
def test_published_steps(name, world, rows, step_rows, steps, monkeypatch):
    from headwatch.training.plan import steps_of
    from headwatch.training.smoke import without_gpu

    options = parse([f"{FOLDER / QWEN / name}.yaml"])
    without_gpu(options)
    recipe = options.build()
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert steps_of(recipe, rows) == (step_rows, steps)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if is_variant(name) else name for name in RECIPES]
)
def test_smoke(name, tmp_path, capsys, monkeypatch):
    """Templates, filters, rewards, callback and sinks of the recipe, for four steps."""
    wandb = name == "smollm2-135m/sft_gsm8k.yaml"  # starting a W&B run takes seconds, so only one does
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = ["--report_to", "wandb" if wandb else "none", "--headwatch.strict", "true"]
    if "gsm8k" in name and GSM8K.is_file():
        options += ["--dataset_name", str(GSM8K)]
    trainer = run([str(FOLDER / name), "--smoke", "--output_dir", str(tmp_path / "out"), *options])
    said = capsys.readouterr().out
    recipe = read_recipe(FOLDER / name)
    for option, here in {"bf16": True, "use_vllm": True, "optim": "adamw_torch_fused"}.items():
        assert (recipe.get(option) == here) == (f"  {option}: {here} -> " in said), option
    record = RunFolder.open(tmp_path / "out" / "headwatch")
    assert record.steps == [0, 2, 4]
    assert record.manifest["status"] == "finished"
    assert record.families == tuple(recipe["headwatch"]["probes"])
    if recipe["method"] == "grpo":
        logged = set().union(*(row.keys() for row in record.training()))
        assert {f"rewards/{reward}/mean" for reward in recipe["rewards"]} <= logged
        assert {"kl", "reward", "completions/clipped_ratio"} <= logged
    assert bool(recipe.get("use_peft")) == hasattr(trainer.model, "peft_config")
    if wandb:
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow  # FSDP2 and DDP; tests/training/test_processes.py has one in make test
@pytest.mark.parametrize("name", TWO)
def test_smoke_of_the_two_gpu_recipes_by_two_processes(name, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--smoke", "--output_dir", str(tmp_path / "out"), "--report_to", "none", "--headwatch.strict", "true"]
    done = subprocess.run(
        [*command, "-m", "headwatch.training", str(FOLDER / name), *options],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("recipe: ") == 1  # only one process prints
    assert RunFolder.open(tmp_path / "out" / "headwatch").steps == [0, 2, 4]
