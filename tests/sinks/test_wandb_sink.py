"""The W&B sink against the real wandb, offline: what lies on disk afterwards is read back and compared."""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from helpers.wandb_files import WandbRun, offline_runs

from headwatch.errors import UserError
from headwatch.sinks import WandbSink

FIGURE = {
    "data": [{"type": "heatmap", "z": np.array([[0.123456, np.nan], [1.0, 2.0]]), "x": np.arange(2)}],
    "layout": {"title": {"text": "step 3"}, "template": "none"},
}


def titled(step: int) -> dict[str, dict[str, Any]]:
    figure = {"data": [{"type": "scatter", "y": [step]}], "layout": {"title": {"text": f"step {step}"}}}
    return {"a": figure, "b": figure}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """wandb.init as a user's script calls it, but offline and in a folder of its own."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield lambda **options: wandb.init(**{"mode": "offline", "dir": tmp_path, **options})
    if wandb.run is not None:
        wandb.run.finish()


def only_run(folder: Path) -> WandbRun:
    (run,) = offline_runs(folder)
    return run


def test_one_row_a_probe_with_scalars_and_figures(start: Callable[..., Any], tmp_path: Path) -> None:
    run = start(project="mine")
    sink = WandbSink()
    sink.log(0, {"active": 12, "cohort/100": 3, "gap": float("nan"), "spell": None}, lambda: {"life": FIGURE})
    sink.log(100, {"active": np.float32(13)}, {"life": FIGURE, "cohorts": FIGURE})
    sink.finish()
    assert sink.run_info() == {"id": run.id, "project": "mine", "entity": None, "url": None}
    run.finish()

    read = only_run(tmp_path)
    first, second = read.with_key("headwatch/")
    assert first.keys() == {"headwatch/active", "headwatch/cohort/100", "headwatch/life", "train/global_step"}
    assert (first["train/global_step"], first["headwatch/active"]) == (0, 12)
    assert second.keys() == {"headwatch/active", "headwatch/life", "headwatch/cohorts", "train/global_step"}
    assert (second["train/global_step"], second["headwatch/active"]) == (100, 13)
    assert len(read.rows) == 2
    assert read.metrics["headwatch/*"] == "train/global_step"


def test_figures_are_plain_lists_of_four_decimals(start: Callable[..., Any], tmp_path: Path) -> None:
    run = start()
    sink = WandbSink()
    sink.log(0, {}, {"life": FIGURE})
    sink.finish()
    run.finish()
    (file,) = only_run(tmp_path).media()
    assert file.name.startswith("life_")
    assert "bdata" not in file.read_text()
    figure = json.loads(file.read_text())
    assert figure["data"][0]["z"] == [[0.1235, None], [1.0, 2.0]]
    assert figure["data"][0]["x"] == [0, 1]
    assert figure["layout"]["title"]["text"] == "step 3"


def test_rows_of_others_stay_as_they_are(start: Callable[..., Any], tmp_path: Path) -> None:
    """A trainer and TRL's profiler log on, from the main thread, while the sink's thread logs figures."""
    run = start()
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)  # as transformers' callback does
    sink = WandbSink()
    rewards, probes = [], []
    for step in range(1, 201):
        run.log({"profiling/Time taken: GRPOTrainer._prepare_inputs": 0.1})
        if step % 2 == 0:
            rewards.append({"train/reward": step / 7, "train/loss": 1 / step, "train/global_step": step})
            run.log(rewards[-1])
        if step % 10 == 0:
            probes.append({"headwatch/active": step // 10, "train/global_step": step})
            sink.log(step, {"active": step // 10}, {"life": FIGURE} if step % 50 == 0 else None)
    sink.finish()
    run.finish()
    read = only_run(tmp_path)
    assert read.with_key("train/reward") == rewards
    ours = read.with_key("headwatch/")
    assert [{k: v for k, v in row.items() if k != "headwatch/life"} for row in ours] == probes
    assert [row["train/global_step"] for row in ours if "headwatch/life" in row] == [50, 100, 150, 200]
    assert len(read.with_key("profiling/")) == 200
    assert len(read.rows) == 200 + len(rewards) + len(probes)


def test_media_are_bounded_and_the_final_set_is_shown(start: Callable[..., Any], tmp_path: Path) -> None:
    run = start()
    sink = WandbSink(media_limit=13)
    for step in range(20):
        sink.log(step, {"active": step}, titled(step))
        sink._queue.join()
    sink.log(20, {"active": 20}, titled(20), final=True)
    sink.finish()
    run.finish()
    read = only_run(tmp_path)
    assert [row["train/global_step"] for row in read.rows if "headwatch/a" in row] == [0, 1, 4, 16, 20]
    assert len(read.media()) == 10
    assert [row["train/global_step"] for row in read.rows] == list(range(21))


@pytest.mark.parametrize(("n_probes", "rows"), [(2, [0, 1]), (3, [0, 1, 2, 2])])
def test_a_training_that_ends_early_shows_its_last_figures(
    n_probes: int, rows: list[int], start: Callable[..., Any], tmp_path: Path
) -> None:
    run = start()
    sink = WandbSink(media_limit=13)
    for step in range(n_probes):
        sink.log(step, {"active": step}, titled(step))
    sink.finish()
    run.finish()
    read = only_run(tmp_path)
    assert [row["train/global_step"] for row in read.rows] == rows
    assert [row["headwatch/active"] for row in read.rows if "headwatch/active" in row] == list(range(n_probes))
    last = json.loads((read.folder / "files" / read.rows[-1]["headwatch/a"]["path"]).read_text())
    assert last["layout"]["title"]["text"] == f"step {n_probes - 1}"


def test_probes_that_come_before_the_run_are_held(start: Callable[..., Any], tmp_path: Path) -> None:
    sink = WandbSink()
    sink.log(0, {"active": 1})
    assert sink.run_info() is None
    run = start()
    sink.log(100, {"active": 2})
    sink.finish()
    run.finish()
    assert [row["train/global_step"] for row in only_run(tmp_path).rows] == [0, 100]


def test_without_a_run_nothing_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="headwatch")
    sink = WandbSink()
    for step in range(100):
        sink.log(step, {"active": 1}, {"life": FIGURE})
    sink.finish()
    sink.finish()
    assert wandb.run is None
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_the_next_run_of_a_search_gets_its_own_probes(start: Callable[..., Any], tmp_path: Path) -> None:
    sink = WandbSink()
    for trial in (1, 2):
        run = start(id=f"trial{trial}")
        sink.log(trial, {"active": trial})
        sink._queue.join()  # a search finishes a trial's run long after its last probe
        run.finish()
    sink.finish()
    by_id = {run.id: run for run in offline_runs(tmp_path)}
    assert [row["train/global_step"] for row in by_id["trial2"].rows] == [2]
    assert by_id["trial2"].metrics["headwatch/*"] == "train/global_step"


def test_a_disabled_run_is_respected(
    start: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="headwatch")
    run = start(mode="disabled")
    sink = WandbSink("start")
    sink.log(0, {"active": 1}, {"life": FIGURE})
    assert sink.run_info() is None
    sink.finish()
    assert not [record for record in caplog.records if record.name.startswith("headwatch")]
    assert wandb.run is run
    assert not offline_runs(tmp_path)
    assert "headwatch-wandb" not in [thread.name for thread in threading.enumerate()]


def test_a_run_that_is_over_warns_once_and_is_given_up(
    start: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    sink = WandbSink()
    sink.log(0, {"active": 1})
    sink._queue.join()
    run.finish()  # by the user's script, in the middle of the training
    tried: list[int] = []
    for step in range(1, 9):
        sink.log(step, {"active": 1}, lambda step=step: tried.append(step) or {})
    sink.finish()
    assert tried == [1, 2, 3]
    assert [record.levelname for record in caplog.records if record.name.startswith("headwatch")] == ["WARNING"]
    assert "run folder is complete" in caplog.text


def test_a_figure_that_cannot_be_drawn_leaves_the_scalars(
    start: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    sink = WandbSink()
    for step in range(5):
        sink.log(step, {"active": 1}, {"life": {"data": [{"type": "no such trace"}]}})
    sink.finish()
    run.finish()
    assert [row["train/global_step"] for row in only_run(tmp_path).rows] == [0, 1, 2, 3, 4]
    assert caplog.text.count("drawing figures") == 1


def test_a_queue_that_is_full_drops_rows_instead_of_waiting(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = start()
    sink = WandbSink()
    reached, hanging = threading.Event(), threading.Event()

    def hang() -> dict[str, Any]:
        reached.set()
        hanging.wait(60)
        return {}

    sink.log(0, {"active": 1}, hang)
    assert reached.wait(30)
    for step in range(1, 60):
        sink.log(step, {"active": 1})
    sink.finish(timeout=0.2)
    assert caplog.text.count("rows are pending") == 1
    assert "W&B took more than 0.2 s" in caplog.text
    hanging.set()
    run.finish()


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(UserError, match=r"wandb='online'.*'auto'"):
        WandbSink("online")


@pytest.fixture
def new_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A W&B session that knows no key, as on a machine where nobody has logged in."""
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    yield
    wandb.teardown()


def probe_and_finish(sink: WandbSink) -> dict[str, str | None] | None:
    sink.log(0, {"active": 1}, {"life": FIGURE})
    info = sink.run_info()
    sink.finish()
    return info


@pytest.mark.usefixtures("new_session")
def test_start_without_a_key_keeps_the_run_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = probe_and_finish(WandbSink("start", project="p", name="n", config={"every": 100}))
    assert "no API key" in caplog.text
    read = only_run(tmp_path)
    assert info == {"id": read.id, "project": "p", "entity": None, "url": None}
    assert read.rows[0].keys() >= {"headwatch/active", "headwatch/life", "train/global_step"}
    assert read.exit_code == 0  # finished, by the sink
    assert wandb.run is None


@pytest.mark.usefixtures("new_session")
def test_a_run_that_others_started_is_left_open(start: Callable[..., Any], tmp_path: Path) -> None:
    run = start()
    probe_and_finish(WandbSink("start", project="p"))
    run.log({"still": "open"})
    run.finish()
    assert only_run(tmp_path).rows[-1]["still"] == "open"


@pytest.mark.parametrize("mode", ["auto", "start"])
def test_wandb_not_installed_is_no_error(
    mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes `import wandb` raise ImportError
    assert probe_and_finish(WandbSink(mode)) is None
    assert ("pip install 'headwatch[wandb]'" in caplog.text) == (mode == "start")


def test_plotly_not_installed_leaves_the_scalars(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    run = start()
    probe_and_finish(WandbSink())
    run.finish()
    assert only_run(tmp_path).with_key("headwatch/") == [{"headwatch/active": 1, "train/global_step": 0}]
