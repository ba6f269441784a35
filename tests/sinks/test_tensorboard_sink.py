"""The TensorBoard sink: what lies in the event files is read back by TensorBoard's own reader."""

import os
from pathlib import Path

import pytest
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from headwatch import HeadWatchCallback, RunFolder
from headwatch.sinks import TensorBoardSink
from headwatch.sinks.tensorboard import trainer_log_folder


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_and_texts_are_on_disk_at_once(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.log(0, {"active": 12, "gap": float("nan"), "spell": None}, texts={"alerts_text": ""})
    sink.log(100, {"active": 13, "cohort/100": 2}, texts={"alerts_text": "insufficient signal"}, final=True)
    events = read(tmp_path)  # before it is closed
    assert set(events.Tags()["scalars"]) == {"headwatch/active", "headwatch/cohort/100"}
    assert scalars(events, "headwatch/active") == [(0, 12.0), (100, 13.0)]
    (text,) = events.Tensors("headwatch/alerts_text/text_summary")
    assert (text.step, text.tensor_proto.string_val[0]) == (100, b"insufficient signal")
    sink.finish()
    sink.finish()


def test_a_resumed_training_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    for begin, value in ((0, 1.0), (20, 2.0)):
        sink = TensorBoardSink(tmp_path)
        for step in range(begin, 50, 10):
            sink.log(step, {"active": value})
        sink.finish()
        os.utime(max(tmp_path.iterdir(), key=lambda file: file.name), (begin + 1, begin + 1))
    assert scalars(read(tmp_path), "headwatch/active") == [(0, 1.0), (10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0)]


def test_a_folder_that_cannot_be_written_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    sink = TensorBoardSink(tmp_path / "file" / "inside")
    for step in range(5):
        sink.log(step, {"active": 1})
    sink.finish()
    assert caplog.text.count("writing for TensorBoard failed") == 1


def test_the_trainer_log_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    assert trainer_log_folder(tmp_path) == tmp_path / "runs" / "headwatch"
    for age, name in enumerate(("b", "a")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        os.utime(tmp_path / "runs" / name, (age, age))
    assert trainer_log_folder(tmp_path).name == "a"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    assert trainer_log_folder(tmp_path) == tmp_path / "elsewhere"


def test_a_trainer_that_reports_there_has_one_run_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    model = save_tiny_model(tmp_path / "model")
    watch = HeadWatchCallback("addition", every=2, n_pairs=8, strict=True)
    sft_trainer(model, tmp_path, [watch], report_to=["tensorboard"]).train()
    (folder,) = (tmp_path / "runs").iterdir()
    events = read(folder)
    assert [step for step, _ in scalars(events, "train/loss")] == [1, 2, 3, 4, 5]
    for row in RunFolder.open(tmp_path).scalars():
        assert (row["step"], row["addition/active"]) in scalars(events, "headwatch/addition/active")
    assert [step for step, _ in scalars(events, "headwatch/alerts")] == [0, 2, 4, 5]
