"""`headwatch follow`: the record of a folder of checkpoints is the callback's, killed and resumed or not."""

import random
import shutil
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


@pytest.fixture(scope="module")
def whole(fork: Trainings, trained: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The record of following that folder, and how many dangerous moments it has."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ended = fork.follow(trained, model, out)
    assert not ended["failed"]
    return out, ended["moments"]


def test_followed_in_another_process_while_a_training_runs(fork: Trainings, model: Path, tmp_path: Path) -> None:
    output, called, followed = tmp_path / "out", tmp_path / "called", tmp_path / "followed"
    options = ["--every", "2", "--until-done", "--poll", "0.2"]
    fork.start(model=str(model), output=str(output), follow_into=str(followed), options=options)
    watch = HeadWatchCallback(["addition", "recall"], every=2, n_pairs=8, strict=True, folder=called)
    grpo_trainer(model, output, [watch], max_steps=5, save_strategy="steps", save_steps=2).train()
    assert not fork.ended()["failed"]
    assert (followed / "report.html").is_file()
    mine, yours = RunFolder.open(followed), RunFolder.open(called)
    assert mine.steps == [0, 2, 4, 5]  # 5 is off the schedule, and the last
    same_history(mine, yours)
    *rows, summary = yours.training()
    assert "train_runtime" in summary  # logged after the last checkpoint, which therefore cannot hold it
    added = ("train_", "total_flos")
    assert mine.training() == [*rows, {k: v for k, v in summary.items() if not k.startswith(added)}]
    assert mine.manifest["status"] == "finished"
    assert mine.manifest["probes"] == yours.manifest["probes"]


def test_killed_at_any_moment_and_started_again(
    fork: Trainings, trained: Path, model: Path, whole: tuple[Path, int], tmp_path: Path
) -> None:
    expected, total = whole
    check_killed(fork, trained, model, RunFolder.open(expected), tmp_path, [total // 3, total // 4, 5])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_many_moments(
    fork: Trainings, trained: Path, model: Path, whole: tuple[Path, int], tmp_path: Path
) -> None:
    expected, total = whole
    for seed in range(20):
        draw = random.Random(seed)
        moments = [draw.randrange(1, total // 2) for _ in range(3)]
        check_killed(fork, trained, model, RunFolder.open(expected), tmp_path / str(seed), moments)


def check_killed(
    fork: Trainings, trained: Path, model: Path, expected: RunFolder, folder: Path, moments: list[int]
) -> None:
    """Kill at each moment and start again: the record is the one that was never interrupted."""
    out = folder / "killed"
    killed = [fork.follow(trained, model, out, kill_at=moment)["killed"] for moment in moments]
    assert any(killed)
    assert not fork.follow(trained, model, out)["failed"]
    same_history(RunFolder.open(out), expected)
    assert RunFolder.open(out).training() == expected.training()
    assert RunFolder.open(out).manifest["status"] == "finished"


def test_adapters_as_the_callback_scored_them(model: Path, tmp_path: Path) -> None:
    called = tmp_path / "called"
    watch = HeadWatchCallback(["addition"], every=2, n_pairs=8, strict=True, folder=called)
    sft_trainer(model, tmp_path / "out", [watch], max_steps=4, lora=True, save_strategy="steps", save_steps=2).train()
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
def test_other_layouts(
    path: str, marker: str, options: list[str], trained: Path, model: Path, whole: tuple[Path, int], tmp_path: Path
) -> None:
    """Folders made by hand after the documentation of these trainers."""
    folder = tmp_path / "run"
    lay_out(trained, folder, path)
    if marker == "STABLE":
        (folder / "weights" / "step_3" / marker).touch()
    elif marker:
        (folder / marker).write_text("3")
    command = ["follow", str(folder), "--base", str(model), "--settled", "0", "--no-report", *PROBES, *options]
    assert main(command) == 0
    run = RunFolder.open(folder)
    assert run.steps == ([0, 3] if marker else [0, 3, 6])  # step 6 is not marked as written
    for step in run.steps:
        assert (run.read_scores(step).head_scores == RunFolder.open(whole[0]).read_scores(step).head_scores).all()


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
