"""--dry-run of a bundled recipe without a network."""

from pathlib import Path

import pytest

from headwatch.errors import UserError
from headwatch.training.launch import main
from headwatch.training.offline_plan import is_offline

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-135m" / "sft_gsm8k.yaml"


def test_the_plan_of_what_needs_no_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The tests run offline (tests/conftest.py), and no cache has this model."""
    given = ["--model_name_or_path", "headwatch/not-in-any-cache", "--output_dir", str(tmp_path / "out"), "--dry_run"]
    assert main([str(RECIPE), *given]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert "not-in-any-cache, not read: the Hub cannot be reached" in lines["model"]
    assert lines["steps"].split() == ["steps", "60"]
    assert "7 (step 0, every 10 steps, the last), 64 pairs each of sums, recall" in lines["probes"]
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_still_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RECIPE), "--model_name_or_path", "./no-such-folder", "--dry_run"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not is_offline(UserError("--chat_template x: give chatml"))
