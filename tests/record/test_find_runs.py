"""The run folders that a path stands for."""

from pathlib import Path

import pytest

from headwatch.errors import UserError
from headwatch.record.find_runs import find_runs
from headwatch.record.run_folder import RunFolder

MANIFEST = {"model": {"n_layers": 2, "n_heads": 3}, "probes": {"n_pairs": 5, "families": ["addition"]}}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    for hour, run in enumerate(("sft/headwatch", "grpo/headwatch", "bare")):
        created = f"2026-11-21T1{hour}:00:00+00:00"
        RunFolder.create(tmp_path / run, {"name": run, "created": created, **MANIFEST})
    (tmp_path / "models").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "runs"),
    [
        (".", ["sft/headwatch", "grpo/headwatch", "bare"]),
        ("sft", ["sft/headwatch"]),
        ("sft/headwatch", ["sft/headwatch"]),
        ("bare", ["bare"]),
    ],
)
def test_every_run_is_found(path: str, runs: list[str], outputs: Path) -> None:
    assert [run.path for run in find_runs(outputs / path)] == [outputs / run for run in runs]


def test_an_output_dir_with_a_record_is_one_run(outputs: Path) -> None:
    RunFolder.create(outputs / "headwatch", {"name": "outer", **MANIFEST})
    assert [run.path for run in find_runs(outputs)] == [outputs / "headwatch"]


def test_a_folder_without_runs(outputs: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        find_runs(outputs / "models")
