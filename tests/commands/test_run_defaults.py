"""--run gives a command its pairs, metric, path and seed; an option that differs wins, and one line names it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.plain_run import write_plain_run
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from transformers import AutoTokenizer

from headwatch import HeadWatchCallback, ProbeSet
from headwatch.analysis import circuit_report
from headwatch.cli import main

FAMILIES, PAIRS = ["recall", "carry"], 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def run(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output_dir of a training with settings that no command has by default."""
    folder = tmp_path_factory.mktemp("run")
    scoring = {"metric": "nll", "steps": 2, "alphas": "right", "edges": False}
    watch = HeadWatchCallback(FAMILIES, n_pairs=PAIRS, seed=3, scoring=scoring, every=100, strict=True)
    sft_trainer(Path(model), folder, [watch], max_steps=1).train()
    return folder


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ProbeSet, Any]]:
    """What `headwatch circuit` scores: (pairs, settings) of each call."""
    calls: list[tuple[ProbeSet, Any]] = []
    original = circuit_report.family_circuits

    def recorded(model: Any, probes: ProbeSet, scoring: Any, *rest: Any) -> Any:
        calls.append((probes, scoring))
        return original(model, probes, scoring, *rest)

    monkeypatch.setattr(circuit_report, "family_circuits", recorded)
    return calls


def test_circuit_takes_the_pairs_and_the_scoring_of_the_run(
    model: str, run: Path, scored: list[tuple[ProbeSet, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["circuit", model, "--run", str(run), "--random", "1", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)["families"]
    assert [family["family"] for family in found] == FAMILIES
    own = ProbeSet.load(run / "headwatch" / "probes.safetensors")
    for family, (probes, scoring) in zip(FAMILIES, scored, strict=True):
        assert probes.fingerprint == own.select(family).fingerprint
        assert (scoring.metric, scoring.steps, scoring.alphas) == ("nll", 2, "right")
    assert "other than in --run" not in printed.err


def test_options_win_and_one_line_names_them(
    model: str, run: Path, scored: list[tuple[ProbeSet, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    fast = ["--random", "0", "--run", str(run)]
    options = ["--probes", "carry", "--pairs", "4", "--metric", "logit_diff", "--steps", "1"]
    assert main(["circuit", model, *fast, *options]) == 0
    own = ProbeSet.load(run / "headwatch" / "probes.safetensors")
    (probes, scoring) = scored[0]
    assert probes.fingerprint == own.select("carry").select([0, 1, 2, 3]).fingerprint  # fewer of the same pairs
    assert (scoring.metric, scoring.steps) == ("logit_diff", 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "other than in --run" in line]
    assert len(lines) == 1
    assert "--steps 1 (the run has 2)" in lines[0]
    assert "--metric logit_diff (the run has nll)" in lines[0]

    for more in (["--pairs", "12"], ["--seed", "4"], ["--probes", "addition", "--pairs", "4"]):
        scored.clear()
        assert main(["circuit", model, *fast, *more]) == 0
        line = next(line for line in capsys.readouterr().err.splitlines() if "other than in --run" in line)
        size, seed = (12 if "12" in more else 4 if "4" in more[-1:] and "--pairs" in more else PAIRS), 3
        seed = 4 if "--seed" in more else seed
        names = ["addition"] if "addition" in more else FAMILIES
        assert f"new pairs of {', '.join(names)}, {size} per family, seed {seed}" in line
        assert [len(probes) for probes, _ in scored] == [size] * len(names)


def test_pairs_of_ones_own_cannot_be_generated_again(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ProbeSet.generate("recall", AutoTokenizer.from_pretrained(model), n_pairs=6)
    probes = replace(own, families=("mine",) * 6)
    watch = HeadWatchCallback(probes, scoring={"steps": 1, "edges": False}, every=100, strict=True)
    sft_trainer(Path(model), tmp_path, [watch], max_steps=1).train()
    capsys.readouterr()
    command = ["circuit", model, "--run", str(tmp_path), "--random", "0"]
    assert main([*command, "--json"]) == 0
    assert [family["family"] for family in json.loads(capsys.readouterr().out)["families"]] == ["mine"]
    for options in (["--pairs", "12"], ["--probes", "mine", "--seed", "1"]):
        assert main([*command, *options]) == 2
        assert "its pairs of mine cannot be generated again" in capsys.readouterr().err


def test_roles_takes_the_pairs_of_the_run(model: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roles", model, "--run", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == len(FAMILIES) * PAIRS
    assert main(["roles", model, "--run", str(run), "--pairs", "2", "--heads", "L0.H0,L1.H1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == 2 * len(FAMILIES)
    assert {row["head"] for row in found["heads"]} == {"L0.H0", "L1.H1"}


def test_a_record_without_pairs_leaves_the_commands_defaults(model: str, tmp_path: Path) -> None:
    write_plain_run(tmp_path / "run", [0], layers=2, heads=4)
    assert main(["roles", model, "--run", str(tmp_path / "run"), "--pairs", "2"]) == 0


@pytest.mark.parametrize("command", ["circuit", "roles", "evaluate", "ablate"])
def test_a_model_of_another_shape_is_refused(
    command: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plain_run(tmp_path / "run", [0], layers=3, heads=4)
    problems = tmp_path / "sums.jsonl"
    problems.write_text('{"problem": "1+1=", "answer": "2"}\n')
    suite = ["--suite", str(problems)] if command in ("evaluate", "ablate") else []
    assert main([command, model, *suite, "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "records a model with 3 layers x 4 heads, and" in error[0]


def test_the_plan_of_a_circuit_loads_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["circuit", "Org/Model", "--dry-run", "--json", "--random", "2"]
    for options, families, pairs in (
        ([], ["addition", "recall"], 64),
        (["--run", str(run)], FAMILIES, PAIRS),
        (["--run", str(run), "--pairs", "6", "--probes", "recall"], ["recall"], 6),
    ):
        assert main([*command, *options]) == 0
        plan = json.loads(capsys.readouterr().out)["plan"]
        half = {"selected_on": pairs // 2, "evaluated_on": pairs // 2}
        assert plan == [{"family": family, **half, "circuits": 30} for family in families]
