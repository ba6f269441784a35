"""The campaigns in small: `make fuzz` and `make faults` run thousands of inputs and hundreds of trainings."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns.fuzz import Format, formats, run_format

HERE = Path(__file__).parent
NAMES = (
    *("manifest", "events", "scalars", "training", "alerts", "scores", "sidecar", "probes json", "probes jsonl"),
    *("probes safetensors", "base answers", "questions", "recipe", "command line", "answer"),
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Format]:
    return formats(tmp_path_factory.mktemp("fuzz"))


def test_every_format_is_in_the_campaign(known: dict[str, Format]) -> None:
    assert tuple(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_damaged_inputs_are_read_or_refused(name: str, known: dict[str, Format]) -> None:
    counts, failures = run_format(name, known[name], range(10**6, 10**6 + (8 if name == "scores" else 25)))
    assert failures == []
    assert sum(counts.values()) > 0


def test_an_error_that_is_no_user_error_is_counted() -> None:
    def read(number: int) -> None:
        if number % 2:
            raise KeyError("n_layers")

    counts, failures = run_format("numbers", Format(lambda rng: rng.randrange(10), read), range(40))
    numbers = [random.Random(f"numbers {seed}").randrange(10) for seed in range(40)]
    assert len(failures) == sum(number % 2 for number in numbers) > 0
    assert counts["read"] == 40 - len(failures)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 13])
def test_faults_change_no_weights(first: int) -> None:
    """Every fault once."""
    command = [sys.executable, str(HERE / "faults.py"), "--runs", "13", "--seed", str(first), "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 runs, 0 with something wrong" in done.stdout
