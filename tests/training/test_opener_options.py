"""The launcher's options for openers: the plan of --dry-run, messages for mistakes, what reaches the callback."""

import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip("trl")
pytest.importorskip("math_verify")

from helpers.recipes import nested

from headwatch.cli import main as command_line
from headwatch.probes.system_prompts import OPEN_R1_PROMPT
from headwatch.training.options import parse
from headwatch.training.smoke import make_small, write_stand_ins

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-ins")
    write_stand_ins(folder)
    return folder


@pytest.fixture
def recipe(stand_ins: Path, tmp_path: Path) -> str:
    options = {
        "method": "sft",
        "model_name_or_path": str(stand_ins / "model"),
        "dataset_name": str(stand_ins / "gsm8k.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "bf16": False,
        "headwatch.probes": ["addition", "openers"],
        "headwatch.n_pairs": 5,
        "headwatch.openers.questions": [str(stand_ins / "questions.jsonl")],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(nested(options)))
    return str(path)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert command_line(["train", *arguments, "--dry-run"]) == 0
    return dict(re.findall(r"^  (\w+) +(.*)$", capsys.readouterr().out, re.MULTILINE))


def test_plan_of_the_openers(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = planned(capsys, recipe)
    assert "10 pairs of addition, openers" in sampled["probes"]
    assert ", set " not in sampled["probes"]  # known only after the model has sampled them
    said = sampled["openers"]
    assert said.startswith("sampled at step 0, up to 16 tokens, after 16 questions (")
    assert said.endswith("questions.jsonl), read by kl")
    fixed = planned(
        capsys,
        recipe,
        "--headwatch.openers.source",
        "fixed",
        "--headwatch.openers.metric",
        "nll",
        "--headwatch.openers.tokens",
        "8",
    )
    assert re.search(r"10 pairs of addition, openers, set \w{12}$", fixed["probes"])
    assert fixed["openers"].startswith("fixed, up to 8 tokens")
    assert "openers" not in planned(capsys, recipe, "--headwatch.probes", "addition")


def test_openers_reach_the_callback_with_the_datas_system_prompt(recipe: str) -> None:
    openers = parse([recipe, *(f"--headwatch.openers.{pair}" for pair in ("source=fixed", "tokens=9", "metric=nll"))])
    found = openers.build().watch.openers
    assert (found.source, found.tokens, found.metric) == ("fixed", 9, "nll")
    assert [Path(name).name for name in found.questions] == ["questions.jsonl"]
    for prompt, expected in (("Think first.", "Think first."), ("none", ""), ("open-r1", OPEN_R1_PROMPT)):
        assert parse([recipe, "--system_prompt", prompt]).build().watch.openers.system_prompt == expected


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--headwatch.openers.source", "guessed"], ["headwatch.openers.source", "guessed", "sampled"]),
        (["--headwatch.openers.metric", "logit_diff"], ["headwatch.openers.metric", "logit_diff", "nll"]),
        (["--headwatch.openers.tokens", "2"], ["tokens=2", "4 to 256"]),
        (["--headwatch.openers.token", "9"], ["openers.token:", "nearest is headwatch.openers.tokens"]),
        (["--headwatch.openers.questions", "./nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
        (["--headwatch.probes", "addition", "opener"], ["opener"]),
        (["--headwatch.scoring.alphas", "clean"], ["clean", "kl"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_mistakes_are_one_line(
    recipe: str, capsys: pytest.CaptureFixture[str], typed: list[str], said: list[str]
) -> None:
    assert command_line(["train", recipe, "--dry-run", *typed]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("headwatch: ")
    assert all(word in line for word in said), line


def test_smoke_replaces_the_questions_of_openers(tmp_path: Path) -> None:
    options = parse([str(RECIPES / "qwen2.5-math-1.5b" / "sft_openr1.yaml")])
    assert {s.name: s.here for s in make_small(options, tmp_path)}["headwatch.openers.questions"] == [
        str(tmp_path / "questions.jsonl")
    ]
    options = parse([str(RECIPES / "smollm2-135m" / "sft_gsm8k.yaml")])
    assert "headwatch.openers.questions" not in {s.name for s in make_small(options, tmp_path)}
