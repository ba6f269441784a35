"""The command lines of docs/guide/paper-tables.md: each passes --dry-run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import write_synthetic_run

from headwatch import Circuit
from headwatch.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "paper-tables.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
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


def test_the_page_has_the_four_tables() -> None:
    assert len(COMMANDS) == 9
    assert {command.split()[1] for command in COMMANDS} == {"compare", "evaluate", "ablate"}
