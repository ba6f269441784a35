"""`headwatch follow`: the record of a folder of checkpoints is the callback's, killed and resumed or not."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.killable_training import Trainings, trainings
from helpers.same_record import same_history
from helpers.tiny_trainers import grpo_trainer, save_tiny_model, sft_trainer
from helpers.wandb_files import offline_runs

from headwatch import HeadWatchCallback, RunFolder
from headwatch.cli import main

PROBES = ["--probes", "addition", "recall", "--pairs", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def fork() -> Iterator[Trainings]:
    with trainings() as process:
        yield process


@pytest.fixture(scope="module")
def trained(fork: Trainings, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's output_dir with checkpoint-3, checkpoint-6 and checkpoint-7."""
    output = tmp_path_factory.mktemp("trained")
    assert not fork.train(model, output)["failed"]
    return output


def test_followed_in_another_process_while_a_training_runs(model: Path, tmp_path: Path) -> None:
    output, called, followed = tmp_path / "out", tmp_path / "called", tmp_path / "followed"
    command = [sys.executable, "-m", "headwatch.cli", "follow", str(output), "--base", str(model), "--until-done"]
    command += ["--every", "2", "--poll", "0.2", "--out", str(followed), "--json", *PROBES]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        watch = HeadWatchCallback(["addition", "recall"], every=2, n_pairs=8, strict=True, folder=called)
        trainer = grpo_trainer(model, output, [watch], max_steps=5, save_strategy="steps", save_steps=2)
        trainer.train()
        told, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    result = json.loads(told)
    assert result["done"]
    assert result["steps"] == [0, 2, 4, 5]  # 5 is off the schedule, and the last
    assert (followed / "report.html").is_file()
    mine, yours = RunFolder.open(followed), RunFolder.open(called)
    summary = yours.training()[-1]
    assert "train_runtime" in summary  # logged after the last checkpoint, which therefore cannot hold it
    same_history(mine, yours)
    assert mine.training() == [
        {key: value for key, value in row.items() if not key.startswith(("train_", "total_flos"))}
        for row in yours.training()
    ]
    assert mine.manifest["status"] == "finished"
    assert mine.manifest["probes"] == yours.manifest["probes"]


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_moment_and_started_again(
    fork: Trainings, trained: Path, model: Path, tmp_path: Path, seed: int
) -> None:
    whole = tmp_path / "whole"
    ended = fork.follow(trained, model, whole)
    assert not ended["failed"]
    moments = random.Random(seed)
    out = tmp_path / "killed"
    kills = 0
    for _ in range(3):
        kills += fork.follow(trained, model, out, kill_at=moments.randrange(1, ended["moments"] // 2))["killed"]
    assert kills
    assert not fork.follow(trained, model, out)["failed"]
    same_history(RunFolder.open(out), RunFolder.open(whole))
    assert RunFolder.open(out).training() == RunFolder.open(whole).training()
    assert RunFolder.open(out).manifest["status"] == "finished"


def test_adapters_as_the_callback_scored_them(model: Path, tmp_path: Path) -> None:
    called = tmp_path / "called"
    watch = HeadWatchCallback(["addition"], every=2, n_pairs=8, strict=True, folder=called)
    sft_trainer(
        model, tmp_path / "out", [watch], max_steps=4, lora=True, save_strategy="steps", save_steps=2
    ).train()
    options = ["--every", "2", "--probes", "addition", "--pairs", "8", "--device", "cpu", "--no-report"]
    assert main(["follow", str(tmp_path / "out"), *options]) == 0  # the adapter names its base
    same_history(RunFolder.open(tmp_path / "out"), RunFolder.open(called))


def lay_out(trained: Path, folder: Path, path: str, steps: tuple[int, ...] = (3, 6)) -> None:
    """The weights of a training in another layout, without what only the Trainer writes."""
    for step in steps:
        target = folder / path.format(step)
        target.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(trained / f"checkpoint-{step}" / name, target / name)


@pytest.mark.parametrize(
    ("path", "marker", "options"),
    [
        ("global_step_{}/actor/huggingface", "latest_checkpointed_iteration.txt", []),
        ("weights/step_{}", "STABLE", []),
        ("epoch/iter_{}", "", ["--pattern", r"epoch/iter_(\d+)"]),
    ],
    ids=["verl", "prime-rl", "pattern"],
)
def test_other_layouts(path: str, marker: str, options: list[str], trained: Path, model: Path, tmp_path: Path) -> None:
    """Folders made by hand after the documentation of these trainers."""
    folder = tmp_path / "run"
    lay_out(trained, folder, path)
    if marker == "STABLE":
        (folder / "weights" / "step_3" / marker).touch()
    elif marker:
        (folder / marker).write_text("3")
    command = ["follow", str(folder), "--base", str(model), "--settled", "0", "--no-report", *PROBES, *options]
    assert main(command) == 0
    steps = RunFolder.open(folder).steps
    assert steps == ([0, 3] if marker else [0, 3, 6])  # step 6 is not marked as written
    if marker == "STABLE":
        (folder / "weights" / "step_6" / marker).touch()
    elif marker:
        (folder / marker).write_text("6")
    assert main(command) == 0
    assert RunFolder.open(folder).steps == [0, 3, 6]
    assert main(["follow", str(trained), "--base", str(model), "--out", str(tmp_path / "plain"), *PROBES]) == 0
    ours, plain = RunFolder.open(folder), RunFolder.open(tmp_path / "plain")
    for step in (3, 6):
        assert (ours.read_scores(step).head_scores == plain.read_scores(step).head_scores).all()


def test_wandb_rows_are_the_callbacks(
    trained: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    command = ["follow", str(trained), "--base", str(model), "--out", str(tmp_path / "run"), "--no-report", *PROBES]
    assert main([*command, "--every", "3", "--report-to", "wandb"]) == 0
    rows = [row for row in offline_runs(tmp_path)[0].rows if "headwatch/addition/active" in row]
    assert [row["train/global_step"] for row in rows] == [0, 3, 6, 7]
    run = RunFolder.open(tmp_path / "run")
    for row, scalars in zip(rows, run.scalars(), strict=True):
        assert row["headwatch/recall/active"] == scalars["recall/active"]
    assert run.manifest["wandb"]["id"]


def test_one_line_for_a_mistake(trained: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, line in (
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(tmp_path / "empty"), "--base", str(model)], "no checkpoint in it"),
        ([str(trained), "--out", str(tmp_path / "run")], "--base is missing"),
        ([str(trained), "--base", str(model)], "made during training: give another folder with --out"),
        ([str(trained), "--pattern", "("], "is not a regular expression"),
        ([str(trained), "--pattern", "x"], "has no group"),
    ):
        assert main(["follow", *arguments]) == 2
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1
