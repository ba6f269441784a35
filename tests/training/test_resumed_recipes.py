"""Runs that are killed (SIGKILL) and resumed in new processes have the history of uninterrupted ones, bit for bit."""

import json
import multiprocessing
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("trl")
pytest.importorskip("math_verify")

import numpy as np
import torch
from helpers.recipes import nested
from helpers.same_record import MEASURED, OF_THE_PROCESS
from safetensors.torch import load_file

from headwatch import RunFolder
from headwatch.errors import UserError
from headwatch.training.checkpoints import checkpoint_to_resume, checkpoints, is_complete, wandb_variables
from headwatch.training.launch import main, run
from headwatch.training.smoke import write_stand_ins

RECIPES = Path(__file__).parents[2] / "recipes"


def letters(completions, **columns):
    """A reward that differs between the completions of an untrained model, which the recipes' rewards do not."""
    return [len(set(completion[0]["content"])) / 10 for completion in completions]


COMMON = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "logging_steps": 1,
    "learning_rate": 0.03,  # large enough to change circuits of 20 edges, so that there are events to compare
    "headwatch.circuit.top_n": 20,
    "save_strategy": "steps",
    "save_steps": 2,
    "headwatch.probes": ["addition"],
    "headwatch.every": 3,
    "headwatch.n_pairs": 8,
    "headwatch.scoring.steps": 1,
    "headwatch.strict": True,
}
SFT = {"method": "sft", "max_length": 1024, "n_problems": 12, "max_steps": 16, "per_device_train_batch_size": 2}
GRPO = {
    "method": "grpo",
    "rewards": ["test_resumed_recipes.letters"],
    "num_generations": 4,
    "max_completion_length": 6,
    "max_prompt_tokens": 2048,
    "beta": 0.04,
    "per_device_train_batch_size": 8,
    "n_problems": 6,  # three steps an epoch
    "max_steps": 6,
    "headwatch.every": 1,
}


@pytest.fixture
def recipe(tmp_path):
    """A function that writes a recipe for the stand-in model and rows, and returns its path."""

    def write(base, **options):
        write_stand_ins(tmp_path)
        where = {"model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "gsm8k.jsonl")}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(nested({**COMMON, **where, **base, **options}), sort_keys=False))
        return str(path)

    return write


def launch(arguments):
    sys.exit(main(arguments))


def start(arguments):
    """`headwatch train` in a new process, forked from one that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["headwatch.training.launch"])
    process = context.Process(target=launch, args=([str(argument) for argument in arguments],))
    process.start()
    return process


def wait_for(process, condition, what):
    """Wait until the condition holds, which must be before the process ends."""
    while not condition():
        time.sleep(0.002)
        assert process.is_alive() or condition(), f"ended with {process.exitcode} before {what}"


def assert_same_history(one, two):
    """Compare records, weights and the run's part of the trainer's logs of two output folders, bit for bit."""
    records = [RunFolder.open(path / "headwatch") for path in (one, two)]
    assert records[0].steps == records[1].steps
    for step in records[0].steps:
        first, second = (record.read_scores(step).arrays() for record in records)
        assert first.keys() == second.keys()
        for name, values in first.items():
            assert np.array_equal(values, second[name], equal_nan=values.dtype.kind == "f"), (step, name)
    for name in ("events.jsonl", "alerts.jsonl", "base_answers.safetensors"):
        first, second = ((record.path / name).read_bytes() for record in records)
        assert first == second, name
    assert records[0].events(), "no event to compare"
    for rows in ("scalars", "training"):
        first, second = ([_without_measured(row) for row in getattr(record, rows)()] for record in records)
        assert first == second, rows
    assert records[0].manifest["status"] == records[1].manifest["status"] == "finished"
    (weights,) = {path.name for path in one.glob("*model.safetensors")}
    first, second = (load_file(path / weights) for path in (one, two))
    assert all(torch.equal(values, second[name]) for name, values in first.items())


def _without_measured(row):
    kept = {name: value for name, value in row.items() if name not in MEASURED | OF_THE_PROCESS}
    return json.dumps(kept, sort_keys=True)  # NaN equals NaN


def test_sft_killed_and_resumed(recipe, tmp_path):
    path = recipe(SFT)
    through = start([path, "--output_dir", tmp_path / "through"])
    killed = start([path, "--output_dir", tmp_path / "killed"])
    at = random.randint(3, 8)
    log = tmp_path / "killed" / "headwatch" / "training.jsonl"
    wait_for(killed, lambda: log.is_file() and log.read_text().count("\n") >= at, f"step {at}")
    time.sleep(random.uniform(0, 0.03))
    killed.kill()
    killed.join()
    through.join()
    assert (through.exitcode, killed.exitcode) == (0, -signal.SIGKILL)
    assert checkpoints(tmp_path / "killed")
    resumed = start([path, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "true"])
    resumed.join()
    assert resumed.exitcode == 0
    assert_same_history(tmp_path / "through", tmp_path / "killed")


def test_grpo_resumed_in_any_epoch(recipe, tmp_path):
    """The rows' order and the completions of an uninterrupted run; the record is copied along."""
    path, through = recipe(GRPO), tmp_path / "through"
    run([path, "--output_dir", str(through)])
    for step in (2, 4):  # within the first epoch, and within the second
        on = tmp_path / f"from-{step}"
        run([path, "--output_dir", str(on), "--resume_from_checkpoint", str(through / f"checkpoint-{step}")])
        assert_same_history(through, on)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("smollm2-135m/sft_gsm8k", []),
        ("smollm2-135m/grpo_gsm8k", ["--rewards", "test_resumed_recipes.letters", "--reward_weights", "1"]),
        ("qwen2.5-math-1.5b/sft_openr1_lora24gb", []),
        ("qwen2.5-math-1.5b/grpo_openr1", ["--rewards", "test_resumed_recipes.letters", "--reward_weights", "1"]),
        (
            "qwen2.5-math-1.5b/grpo_openr1_lora24gb",
            ["--rewards", "test_resumed_recipes.letters", "--reward_weights", "1"],
        ),
    ],
)
def test_recipes_killed_twice(name, options, tmp_path):
    """Over several epochs, at random moments within steps, probes and checkpoints."""
    base = [RECIPES / f"{name}.yaml", "--smoke", "--max_steps", "14", "--learning_rate", "0.03", "--n_problems", "10"]
    base += [
        "--save_steps",
        "2",
        "--headwatch.every",
        "3",
        "--headwatch.circuit.top_n",
        "20",
        "--report_to",
        "none",
        *options,
    ]
    base += ["--headwatch.strict", "true", "--output_dir"]
    through = start([*base, tmp_path / "through"])
    through.join()
    assert through.exitcode == 0
    out, on = tmp_path / "killed", []
    for least in (1, 3):  # whole checkpoints
        process = start([*base, out, *on])
        wait_for(process, lambda least=least: sum(map(is_complete, checkpoints(out))) >= least, f"{least} checkpoints")
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        on = ["--resume_from_checkpoint", "true"]
    process = start([*base, out, *on])
    process.join()
    assert process.exitcode == 0
    assert_same_history(tmp_path / "through", out)


# --- which checkpoint -------------------------------------------------------------------------------------------------


class Asked:
    def __init__(self, output_dir, resume_from_checkpoint):
        self.output_dir, self.resume_from_checkpoint = str(output_dir), resume_from_checkpoint


def checkpoint(folder, step, state='{"epoch": 1.0}', optimizer=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    if optimizer:
        (path / "optimizer.pt").write_text("")
    return path


def test_last_complete_checkpoint_is_used(tmp_path):
    for step in (20, 100, 3):
        checkpoint(tmp_path, step)
    assert checkpoint_to_resume(Asked(tmp_path, "true")) == str(tmp_path / "checkpoint-100")
    checkpoint(tmp_path, 120, state=None)  # killed while it was written
    checkpoint(tmp_path, 121, state='{"epoch": 1.')
    checkpoint(tmp_path, 122, state="")
    assert checkpoint_to_resume(Asked(tmp_path, "last")) == str(tmp_path / "checkpoint-100")
    assert checkpoint_to_resume(Asked(tmp_path, str(tmp_path / "checkpoint-3"))) == str(tmp_path / "checkpoint-3")
    assert checkpoint_to_resume(Asked(tmp_path, None)) is None
    assert checkpoint_to_resume(Asked(tmp_path, "false")) is None


def test_checkpoints_that_cannot_be_resumed(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint_to_resume(Asked(tmp_path, "true"))
    checkpoint(tmp_path, 20, state=None)
    with pytest.raises(UserError, match="checkpoint-20 is incomplete"):
        checkpoint_to_resume(Asked(tmp_path, "true"))
    with pytest.raises(UserError, match="no checkpoint there"):
        checkpoint_to_resume(Asked(tmp_path, str(tmp_path / "checkpoint-20")))
    checkpoint(tmp_path, 40, optimizer=False)
    with pytest.raises(UserError, match="--save_only_model false"):
        checkpoint_to_resume(Asked(tmp_path, "true"))


def test_wandb_run_continues_in_the_same_output_folder(tmp_path):
    path = checkpoint(tmp_path, 20)
    assert wandb_variables(str(path), str(tmp_path)) == {}
    sidecar = {"record": "../headwatch", "created": None, "wandb": {"id": "abc123", "project": "p"}}
    (path / "headwatch_state.json").write_text(json.dumps(sidecar))
    assert wandb_variables(str(path), str(tmp_path)) == {"WANDB_RUN_ID": "abc123", "WANDB_RESUME": "allow"}
    assert wandb_variables(str(path), str(tmp_path / "other")) == {}
    (path / "headwatch_state.json").write_text(json.dumps({**sidecar, "wandb": None}))
    assert wandb_variables(str(path), str(tmp_path)) == {}


def test_all_checkpoints_keep_weights_and_the_last_their_optimizer(recipe, tmp_path):
    path = recipe(SFT, max_steps=7, keep_optimizers=2, **{"headwatch.every": 100})
    run([path, "--output_dir", str(tmp_path / "out")])
    found = checkpoints(tmp_path / "out")
    assert [c.name for c in found] == [f"checkpoint-{step}" for step in (2, 4, 6, 7)]
    assert all((c / "model.safetensors").is_file() for c in found)
    assert [(c / "optimizer.pt").is_file() for c in found] == [False, False, True, True]
    shutil.rmtree(found[-1])
    assert checkpoint_to_resume(Asked(tmp_path / "out", "true")) == str(found[-2])
