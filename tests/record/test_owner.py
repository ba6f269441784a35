"""One writer per record: the lock, and the status that follows from it."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.synthetic_runs import write_synthetic_run
from transformers import TrainerState

from headwatch import UserError
from headwatch.errors import StartError
from headwatch.record import owner
from headwatch.record.owner import claim, is_claimed
from headwatch.report.html import render, run_data


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed tmp_path, and ends at a line on its standard input."""
    code = (
        "import sys; from pathlib import Path; from transformers import TrainerState\n"
        "from headwatch.record import owner\n"
        "state = TrainerState(); held = owner.claim(Path(sys.argv[1]), state); print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(30)


def test_another_process_is_refused_until_it_ends(
    other_process: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "WAIT_SECONDS", 0.2)
    training = TrainerState()
    assert is_claimed(tmp_path) is True
    with pytest.raises(StartError, match="another process writes the record"):
        claim(tmp_path, training)
    other_process.kill()
    other_process.wait(30)
    assert is_claimed(tmp_path) is False
    held = claim(tmp_path, training)
    assert held.is_held
    held.release()
    assert is_claimed(tmp_path) is False


def test_a_later_training_of_the_process_takes_over(tmp_path: Path) -> None:
    first, second = TrainerState(), TrainerState()
    earlier = claim(tmp_path, first)
    later = claim(tmp_path, second)
    assert not earlier.is_held
    assert later.is_held
    earlier.release()  # late, and without effect on the other
    assert later.is_held
    assert is_claimed(tmp_path) is True
    with pytest.raises(UserError, match="another HeadWatchCallback of this trainer"):
        claim(tmp_path, second)
    later.release()


@pytest.mark.parametrize("damage", ["cut", "empty", "deleted", "other model"])
def test_one_damaged_probe_costs_that_probe(damage: str, tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", steps=(0, 10, 20, 30))
    path = run.path / "scores" / "step-00000020.safetensors"
    if damage == "deleted":
        path.unlink()
    elif damage == "other model":
        other = write_synthetic_run(tmp_path / "other", n_layers=9, steps=(0, 20))
        path.write_bytes((other.path / "scores" / path.name).read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "cut" else 0])
    with pytest.warns(UserWarning, match="the probe of step 20 cannot be read"):
        data = run_data(run)
    assert data["steps"] == [0, 10, 30]
    assert "the probe of step 20 cannot be read" in data["lost"]
    assert "base" not in data["lost"]
    render([data])


def test_a_lost_base_is_named(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path, steps=(0, 10, 20))
    (run.path / "scores" / "step-00000000.safetensors").unlink()
    with pytest.warns(UserWarning, match="the base is lost, so states are relative to step 10"):
        run_data(run)


def test_a_whole_record_has_nothing_lost(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path, steps=(0, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_data(run)["lost"] is None
    assert run.status == "finished"
