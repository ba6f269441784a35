"""SIGKILL at any moment leaves a record that can be reported and resumed as if nothing had happened.

Trainings first, then `headwatch follow` (which also runs during a training), `circuit`, `ablate` and `evaluate`.
"""

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.killable_training import Trainings, trainings
from helpers.same_record import same_history
from helpers.tiny_trainers import grpo_trainer, save_tiny_model

from headwatch import HeadWatchCallback, RunFolder
from headwatch.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def fork() -> Iterator[Trainings]:
    with trainings() as process:
        yield process


@pytest.fixture(scope="module")
def whole(fork: Trainings, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, int]:
    """The run that is never stopped, and how many dangerous moments it has."""
    output = tmp_path_factory.mktemp("whole")
    ended = fork.train(model, output)
    assert not ended["killed"]
    assert not ended["failed"]
    return RunFolder.open(output), ended["moments"]


def check_and_resume(output: Path, ended: dict, whole: RunFolder, fork: Trainings, model: Path) -> str:
    """What must hold of a killed training; returns what it was resumed from."""
    assert not ended["failed"]
    if not (output / "headwatch" / "manifest.json").is_file():
        assert ended["probed"] is None  # killed before there was a record
        return "nothing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a torn last line
        assert main(["report", str(output), "--out", str(output / "report.html")]) == 0
        run = RunFolder.open(output)
        finished = [step for step in whole.steps if ended["probed"] is not None and step <= ended["probed"]]
        assert run.steps[: len(finished)] == finished
        assert len(run.steps) <= len(finished) + 1  # the probe that was going on may have got so far
        for step in run.steps:
            assert np.array_equal(run.read_scores(step).head_scores, whole.read_scores(step).head_scores)
        rows = [row["step"] for row in run.scalars()]
        assert rows in (run.steps, run.steps[:-1])
        # Not the last one, checkpoint-7: a trainer that resumes where training ended takes another step.
        checkpoints = [output / f"checkpoint-{step}" for step in (3, 6)]
        checkpoints = [path for path in checkpoints if (path / "trainer_state.json").is_file()]
        last = max(checkpoints, key=lambda path: int(path.name.split("-")[1]), default=None)
        if last is None:
            return "the beginning"
        again = fork.train(model, output, resume=str(last))
    assert not again["killed"]
    assert not again["failed"]
    same_history(RunFolder.open(output), whole)
    return last.name


def moments_in(phase: tuple[float, float], total: int, n: int, seed: int) -> list[int]:
    """Some of the moments in a part of the run."""
    low, high = (max(1, round(edge * total)) for edge in phase)
    return sorted(random.Random(seed).sample(range(low, high + 1), n))


def test_killed_at_any_moment(
    whole: tuple[RunFolder, int], fork: Trainings, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, total = whole
    resumed_from = []
    # Before the first checkpoint is complete, before the second one, and after it.
    phases = ((0.0, 0.35), 1), ((0.45, 0.65), 1), ((0.8, 1.0), 2)
    for moment in [moment for phase, n in phases for moment in moments_in(phase, total, n, seed=0)]:
        output = tmp_path / str(moment)
        ended = fork.train(model, output, kill_at=moment)
        assert ended["killed"]
        resumed_from.append(check_and_resume(output, ended, expected, fork, model))
    assert {"checkpoint-3", "checkpoint-6"} <= set(resumed_from)  # else the moments were badly chosen


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_moment(whole: tuple[RunFolder, int], fork: Trainings, model: Path, tmp_path: Path) -> None:
    expected, total = whole
    resumed_from = set()
    for moment in range(1, total + 1):
        output = tmp_path / str(moment)
        ended = fork.train(model, output, kill_at=moment)
        assert ended["killed"]
        resumed_from.add(check_and_resume(output, ended, expected, fork, model))
    assert resumed_from >= {"nothing", "the beginning", "checkpoint-3", "checkpoint-6"}


def test_killed_twice(whole: tuple[RunFolder, int], fork: Trainings, model: Path, tmp_path: Path) -> None:
    """The second time while it takes back what the first has left, or soon after."""
    expected, total = whole
    assert fork.train(model, tmp_path, kill_at=round(0.95 * total))["killed"]
    for moment in (3, 7, 12):
        checkpoint = str(tmp_path / "checkpoint-3")
        assert fork.train(model, tmp_path, kill_at=moment, resume=checkpoint)["killed"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    fork.train(model, tmp_path, resume=str(tmp_path / "checkpoint-3"))
    same_history(RunFolder.open(tmp_path), expected)


@pytest.fixture(scope="module")
def trained(fork: Trainings, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's output_dir with checkpoint-3, checkpoint-6 and checkpoint-7."""
    output = tmp_path_factory.mktemp("trained")
    assert not fork.train(model, output)["failed"]
    return output


def follow(folder: Path, base: Path, out: Path) -> list[str]:
    """The arguments of `headwatch follow`."""
    options = ["--base", str(base), "--out", str(out), "--pairs", "8", "--device", "cpu", "--no-report"]
    options[:0] = ["--probes", "addition", "recall"]
    return ["follow", str(folder), *options]


@pytest.fixture(scope="module")
def followed(fork: Trainings, trained: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The record of following that folder, and how many dangerous moments it has."""
    out = tmp_path_factory.mktemp("followed") / "run"
    ended = fork.command(*follow(trained, model, out))
    assert not ended["failed"]
    return out, ended["moments"]


def test_followed_in_another_process_while_a_training_runs(fork: Trainings, model: Path, tmp_path: Path) -> None:
    output, called, followed = tmp_path / "out", tmp_path / "called", tmp_path / "followed"
    options = ["--every", "2", "--until-done", "--poll", "0.2"]
    fork.start(argv=[*follow(output, model, followed)[:-1], *options])
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


def test_follow_killed_at_any_moment_and_started_again(
    fork: Trainings, trained: Path, model: Path, followed: tuple[Path, int], tmp_path: Path
) -> None:
    expected, total = followed
    check_killed(fork, trained, model, RunFolder.open(expected), tmp_path, [total // 3, total // 4, 5])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_follow_killed_at_many_moments(
    fork: Trainings, trained: Path, model: Path, followed: tuple[Path, int], tmp_path: Path
) -> None:
    expected, total = followed
    for seed in range(20):
        draw = random.Random(seed)
        moments = [draw.randrange(1, total // 2) for _ in range(3)]
        check_killed(fork, trained, model, RunFolder.open(expected), tmp_path / str(seed), moments)


def check_killed(
    fork: Trainings, trained: Path, model: Path, expected: RunFolder, folder: Path, moments: list[int]
) -> None:
    """Kill at each moment and start again: the record is the one that was never interrupted."""
    out = folder / "killed"
    killed = [fork.command(*follow(trained, model, out), kill_at=moment)["killed"] for moment in moments]
    assert any(killed)
    assert not fork.command(*follow(trained, model, out))["failed"]
    same_history(RunFolder.open(out), expected)
    assert RunFolder.open(out).training() == expected.training()
    assert RunFolder.open(out).manifest["status"] == "finished"


def test_circuit_killed_at_any_moment_and_started_again(fork: Trainings, model: Path, tmp_path: Path) -> None:
    options = ["--probes", "addition", "recall", "--pairs", "4", "--steps", "1", "--random", "1", "--device", "cpu"]

    def circuit(out: Path) -> list[str]:
        return ["circuit", str(model), *options, "--out", str(out)]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    total = fork.command(*circuit(whole))["moments"]
    moments = sorted(random.Random(0).sample(range(1, total), 3), reverse=True)
    assert fork.command(*circuit(killed), kill_at=moments[0])["killed"]
    for moment in moments[1:]:  # what is complete is not written again, so a later moment may not be reached
        fork.command(*circuit(killed), kill_at=moment)
    assert not fork.command(*circuit(killed))["failed"]
    files = sorted(path.relative_to(whole) for path in whole.glob("*/*"))
    left = [path.relative_to(killed) for path in killed.glob("*/*")]
    assert files == sorted(path for path in left if not path.name.startswith("."))  # of a write that was cut short
    assert all((whole / file).read_bytes() == (killed / file).read_bytes() for file in files)


def test_ablate_killed_at_any_moment_and_started_again(fork: Trainings, model: Path, tmp_path: Path) -> None:
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(f'{{"problem": "{a}+{2 * a}=", "answer": "{3 * a}"}}\n' for a in range(5, 8)))
    options = ["--samples", "2", "--batch-size", "4", "--max-tokens", "4", "--temperature", "1", "--device", "cpu"]

    def ablate(out: Path) -> list[str]:
        heads = ["--heads", "L0.H0", "--random", "2", "--suite", str(problems), "--instruction", ""]
        return ["ablate", str(model), *heads, *options, "--out", str(out)]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    total = fork.command(*ablate(whole))["moments"]
    moments = sorted(random.Random(1).sample(range(1, total // 2), 3))
    ended = [fork.command(*ablate(killed), kill_at=moment) for moment in moments]
    assert any(each["killed"] for each in ended)
    assert not fork.command(*ablate(killed))["failed"]
    assert (whole / "ablation.json").read_bytes() == (killed / "ablation.json").read_bytes()
    for path in whole.glob("*/*/samples.jsonl"):
        assert path.read_bytes() == (killed / path.relative_to(whole)).read_bytes()


def test_evaluate_killed_at_any_moment_and_started_again(fork: Trainings, model: Path, tmp_path: Path) -> None:
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(f'{{"problem": "{a}+{2 * a}=", "answer": "{3 * a}"}}\n' for a in range(5, 12)))
    options = ["--samples", "3", "--batch-size", "4", "--max-tokens", "6", "--temperature", "1", "--device", "cpu"]

    def evaluate(out: Path) -> list[str]:
        return ["evaluate", str(model), "--suite", str(problems), "--instruction", "", *options, "--out", str(out)]

    total = fork.command(*evaluate(tmp_path / "whole"))["moments"]
    out = tmp_path / "killed"
    killed = [fork.command(*evaluate(out), kill_at=moment)["killed"] for moment in (3, total // 2, total // 3, 6)]
    assert any(killed)
    assert not fork.command(*evaluate(out))["failed"]
    for name in ("samples.jsonl", "result.json", "settings.json"):
        assert (out / "sums" / name).read_bytes() == (tmp_path / "whole" / "sums" / name).read_bytes()
