"""What W&B keeps of whole trainings: the callback's rows are all there, the trainer's own are as without it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from helpers.tiny_trainers import TRAINERS, without_clock
from helpers.wandb_files import Row, WandbRun, offline_runs

from headwatch import HeadWatchCallback, ProbeSet, RunFolder

LAST_STEP = {"sft": 5, "grpo": 4}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def train(kind: str, model: Path, output: Path, callback: HeadWatchCallback | None, **changes: Any) -> WandbRun:
    """Train with transformers' own W&B callback (unless changed); the run that lies on disk afterwards."""
    output.mkdir(exist_ok=True)
    own_run = wandb.init(dir=output, mode="offline") if changes.get("report_to") == "none" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(output))
        TRAINERS[kind](model, output, [callback] if callback else [], **{"report_to": "wandb", **changes}).train()
    (own_run or wandb.run).finish()
    wandb.teardown()  # a session reads its environment once: the next run may have another folder
    (run,) = offline_runs(output)
    return run


def trainers_rows(run: WandbRun) -> list[Row]:
    """The trainer's rows: losses, rewards, summaries; without the clock and without TRL's profiling rows."""
    rows = [
        without_clock(row) for row in run.with_key("train/") if not any(key.startswith("headwatch/") for key in row)
    ]
    return [row for row in rows if row.keys() - {"train/global_step"}]


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_probe_has_its_row_and_the_trainers_rows_are_untouched(
    kind: str, tiny_model: Path, probes: ProbeSet, tmp_path: Path
) -> None:
    plain = train(kind, tiny_model, tmp_path / "without", None)
    watched = train(kind, tiny_model, tmp_path / "with", HeadWatchCallback(probes, every=1, strict=True))
    expected = trainers_rows(plain)
    assert len(expected) >= LAST_STEP[kind]
    assert trainers_rows(watched) == expected

    ours = watched.with_key("headwatch/")
    assert [row["train/global_step"] for row in ours] == list(range(LAST_STEP[kind] + 1))
    folder = RunFolder.open(tmp_path / "with" / "headwatch")
    for row, scalars in zip(ours, folder.scalars(), strict=True):
        sent = {f"headwatch/{key}": value for key, value in scalars.items() if isinstance(value, int | float)}
        sent.pop("headwatch/step", None)
        assert sent.items() <= row.items()
        for family in probes.family_names:
            assert f"headwatch/{family}/circuit/membership_changes_by_chance_high" in row
        assert not [key for key in row if not key.startswith("headwatch/") and key != "train/global_step"]
    assert watched.metrics["headwatch/*"] == "train/global_step"
    assert folder.manifest["wandb"]["id"] == watched.id


def test_few_names_of_two_families_get_a_panel(tiny_model: Path, tmp_path: Path) -> None:
    """Read back from the offline file: panels, the config entry, the summary of each family, the alerts."""
    callback = HeadWatchCallback(["addition", "recall"], every=2, n_pairs=16, strict=True)
    run = train("grpo", tiny_model, tmp_path, callback)
    logged = {key for row in run.rows for key in row if key.startswith("headwatch/")}
    assert len(logged) > 100
    visible = run.visible("headwatch/")
    for family in ("addition", "recall"):
        of_family = [key for key in visible if key.startswith(f"headwatch/{family}/")]
        figures = [key for key in of_family if key.endswith(("/cohorts", "/lives", "/effect"))]
        assert (len(of_family), len(figures)) == (12, 3)
        assert f"headwatch/{family}/accuracy" in of_family
    assert sorted(set(visible) - {k for k in visible if k.count("/") > 1}) == ["headwatch/alerts", "headwatch/seconds"]
    assert len(visible) == 26
    assert all(run.metrics[key] == "train/global_step" for key in logged)
    folder = RunFolder.open(tmp_path / "headwatch")
    config = run.config["headwatch"]
    assert config["fingerprint"] == folder.manifest["probes"]["fingerprint"]
    assert config["families"] == ["addition", "recall"]
    assert config["evidence"]["q"] == 0.01
    assert {"headwatch/addition", "headwatch/recall"} <= run.summary.keys()
    recorded = {(row["kind"].replace("_", " "), row["text"], row["level"]) for row in folder.alerts()}
    assert recorded  # the random model has no signal
    levels = {"warning": "WARN", "status": "INFO"}
    assert len(run.alerts) == len({(row["kind"], row["family"]) for row in folder.alerts()})
    assert set(run.alerts) <= {(f"headwatch: {kind}", text, levels[level]) for kind, text, level in recorded}


def test_the_last_figures_have_the_last_loss(tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    run = train("sft", tiny_model, tmp_path, HeadWatchCallback(probes, every=5, strict=True))
    last = run.with_key("headwatch/")[-1]
    figure = json.loads(
        (run.folder / "files" / last[f"headwatch/{probes.family_names[0]}/cohorts"]["path"]).read_text()
    )
    loss = next(trace for trace in figure["data"] if trace.get("name") == "loss")
    assert loss["x"][-1] == LAST_STEP["sft"]


@pytest.mark.parametrize("kind", TRAINERS)
def test_the_figures_are_there_at_the_end_and_plain(
    kind: str, tiny_model: Path, probes: ProbeSet, tmp_path: Path
) -> None:
    run = train(kind, tiny_model, tmp_path, HeadWatchCallback(probes, every=2, strict=True))
    last = run.with_key("headwatch/")[-1]
    assert last["train/global_step"] == LAST_STEP[kind]
    for family in probes.family_names:
        for figure in ("cohorts", "activation_frequency", "effect", "lives"):
            path = run.folder / "files" / last[f"headwatch/{family}/{figure}"]["path"]
            assert path.stat().st_size < 20_000
            assert "bdata" not in path.read_text()
    types = {
        value["_type"] for row in run.rows for value in row.values() if isinstance(value, dict) and "_type" in value
    }
    assert types == {"plotly-file"}  # no tables
    assert len(run.media()) <= 150


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_run_that_the_trainer_does_not_report_to_is_used(
    kind: str, tiny_model: Path, probes: ProbeSet, tmp_path: Path
) -> None:
    run = train(kind, tiny_model, tmp_path, HeadWatchCallback(probes, every=2, strict=True), report_to="none")
    steps = [row["train/global_step"] for row in run.with_key("headwatch/")]
    assert steps == [0, 2, *range(4, LAST_STEP[kind] + 1)]


def test_start_makes_a_run_and_finishes_it(tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(tmp_path))
        TRAINERS["sft"](tiny_model, tmp_path, [HeadWatchCallback(probes, every=5, wandb="start", strict=True)]).train()
    assert wandb.run is None
    (run,) = offline_runs(tmp_path)
    assert run.exit_code == 0
    assert [row["train/global_step"] for row in run.with_key("headwatch/")] == [0, 5]


@pytest.mark.parametrize("option", ["auto", "off"])
def test_without_a_run_none_is_made(option: str, tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    callback = HeadWatchCallback(probes, every=5, wandb=option, strict=True)
    TRAINERS["sft"](tiny_model, tmp_path, [callback]).train()
    assert wandb.run is None
    assert not (tmp_path / "wandb").exists()
    assert RunFolder.open(tmp_path / "headwatch").manifest["wandb"] is None
