"""The command lines of the guide, those of the paper's tables among them: each that has --dry-run passes it."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import write_synthetic_run

from headwatch import Circuit
from headwatch.cli import main

GUIDE = Path(__file__).parents[1] / "docs" / "guide"
PLANNED = ("circuit", "compare", "follow", "evaluate", "ablate")  # commands with --dry-run


def commands(page: str) -> list[str]:
    """The command lines of the bash blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", (GUIDE / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


COMMANDS = commands("paper-tables.md")
OTHERS = [
    (page, line)
    for page in ("two-checkpoints.md", "heads-off.md", "after-training.md", "follow.md")
    for line in commands(page)
    if line.startswith(tuple(f"headwatch {name} " for name in PLANNED))
]
RECORDS = ("DeepSeek-R1-Distill-Qwen-1.5B", "sft-openr1", "grpo-gsm8k", "Qwen3-8B-think")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, trained models and a circuit with the names on the page."""
    folder = tmp_path_factory.mktemp("paper")
    for name in RECORDS:
        write_synthetic_run(folder / "compared" / name, kind="sft", steps=(0, 50, 100))
    for name in ("sft-openr1", "grpo-openr1", "grpo-gsm8k"):
        (folder / "outputs" / name).mkdir(parents=True)
        (folder / "outputs" / name / "config.json").write_text("{}")
    edges = (("input", "a0.h0.q"), ("a0.h0", "logits"))
    Circuit(edges, (1.0, 1.0), np.ones((1, 1)), top_n=2, tau=None).to_json(folder / "triviaqa.json")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_command_passes_dry_run(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    program, *arguments = shlex.split(command)
    assert program == "headwatch"
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("page", "command"), OTHERS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(OTHERS)])
def test_command_of_the_guide_passes_dry_run(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("outputs/sft", "outputs/grpo", "outputs/grpo/checkpoint-500", "checkpoints/my_run/checkpoint-10"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    write_synthetic_run(tmp_path / "outputs" / "grpo" / "headwatch", kind="grpo", steps=(0, 50, 100))
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command)[1:], "--dry-run"]) == 0
    assert capsys.readouterr().out.strip()


def test_every_page_has_commands() -> None:
    assert {page for page, _ in OTHERS} == {"two-checkpoints.md", "heads-off.md", "after-training.md", "follow.md"}


def test_the_page_has_the_four_tables() -> None:
    assert len(COMMANDS) == 9
    assert {command.split()[1] for command in COMMANDS} == {"compare", "evaluate", "ablate"}
