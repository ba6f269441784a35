"""Every trainer that the docs name, run for real: the one line records probes and leaves the same weights."""

import re
from pathlib import Path

import pytest
from helpers.all_trainers import OFF, TRAINERS, trained
from helpers.tiny_trainers import same_weights, save_tiny_model, trained_weights
from transformers import AutoModelForCausalLM

from headwatch import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "trainers.md"


def test_a_reward_model_turns_probing_off_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained("RewardTrainer", save_tiny_model(tmp_path / "model"), tmp_path / "out", watch=True)
    (line,) = [record.getMessage() for record in caplog.records if "probing is off" in record.getMessage()]
    assert "no output matrix over the vocabulary" in line


@pytest.mark.parametrize("name", list(TRAINERS))
def test_same_weights_and_a_record_in_every_trainer(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    weights = [trained_weights(trained(name, model, tmp_path / str(watch), watch)) for watch in (True, False)]
    assert same_weights(*weights)
    assert not same_weights(weights[0], dict(AutoModelForCausalLM.from_pretrained(model).named_parameters()))
    run = RunFolder.open(tmp_path / "True")
    assert run.steps == [0, 2, 3]
    assert run.manifest["status"] == "finished"


def test_the_page_has_a_row_for_every_tested_trainer() -> None:
    rows = re.findall(r"^\| `(\w+)`", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(TRAINERS | OFF)
