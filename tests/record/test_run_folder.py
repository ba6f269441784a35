"""The run folder: what is written is read back, after any crash; nothing is deleted."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_records import MANIFEST, scores
from helpers.synthetic_runs import write_synthetic_run

from headwatch import HeadHistory
from headwatch.errors import UserError
from headwatch.lives.events import Event
from headwatch.record.layout import LOGS
from headwatch.record.run_folder import RunFolder, describe_probes


def event(step: int, head: int = 0, kind: str = "emerged") -> Event:
    return Event(step, "addition", 1, head, kind, 0.01, 0.2, 1e-5, 1e-3)


def everything(run: RunFolder) -> tuple[Any, ...]:
    files = sorted(p for p in run.path.rglob("*") if p.is_file())
    return tuple((str(p.relative_to(run.path)), p.read_bytes()) for p in files)


def filled(path: Path, steps: range = range(0, 50, 10)) -> RunFolder:
    run = RunFolder.create(path, MANIFEST)
    for step in steps:
        run.write_scores(step, scores(step))
        run.append_scalars(step, {"seconds": step + 0.5})
        run.append_events([event(step), event(step, head=1)])
        run.append_alerts([{"step": step, "kind": "unstable", "text": "too unstable"}])
        for training_step in range(step - 4, step + 1, 2):
            if training_step > 0:
                run.append_training(training_step, {"loss": training_step / 100})
    return run


# --- writing and reading --------------------------------------------------------------------------------------------


def test_representations_are_one_short_line(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    assert repr(run) == f"RunFolder('{tmp_path / 'run'}', 5 probes)"
    assert repr(run.events()[0]) == "Event(step 0: L1.H0 emerged on addition (share 1.0 % -> 20.0 %, q 0.001))"
    pending = Event(30, "recall", 2, 7, "dropped", 0.1, None, rule="circuit", status="pending")
    assert repr(pending) == (
        "Event(step 30: L2.H7 was dropped on recall (importance 10.0 % -> –), circuit rule, pending)"
    )


def test_rows_are_read_in_order_and_merged_by_step(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, MANIFEST)
    run.append_training(10, {"loss": 0.5, "epoch": 0.1})
    run.append_training(20, {"loss": 0.4})
    run.append_training(20, {"train_runtime": 3.5})  # the trainer's summary has the last step's number
    assert run.training() == [{"step": 10, "loss": 0.5, "epoch": 0.1}, {"step": 20, "loss": 0.4, "train_runtime": 3.5}]
    run.append_scalars(10, {"seconds": 1.0})
    run.append_scalars(10, {"seconds": 2.0})
    assert run.scalars() == [{"step": 10, "seconds": 2.0}]
    run.append_events([event(10), event(10, head=1)])
    run.append_events([])
    run.append_events([event(10, kind="pruned")])  # step 10 probed again after a resume
    assert run.events() == [event(10, kind="pruned"), event(10, head=1)]


@pytest.mark.parametrize(
    "value",
    [
        0.25,
        np.float32(0.25),
        np.array(0.25),
        np.array([0.25]),
        torch.tensor(0.25),
        torch.tensor([0.25], dtype=torch.bfloat16),
    ],
    ids=["float", "float32", "0-d", "1 entry", "torch", "bfloat16"],
)
def test_scalars_of_any_type_become_numbers(value: Any, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, MANIFEST)
    run.append_scalars(np.int64(3), {"x": value})  # type: ignore[arg-type]
    run.append_training(3, {"x": value})
    assert run.scalars() == run.training() == [{"step": 3, "x": 0.25}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, np.float32("nan"), torch.tensor(float("nan"))])
def test_values_that_are_not_finite_become_null(value: Any, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, MANIFEST)
    run.append_scalars(1, {"x": value, "y": 1})
    run.append_training(1, {"x": value})
    run.append_events([Event(1, "addition", 0, 0, "emerged", value, 0.1)])
    run.append_alerts([{"step": 1, "value": value}])
    run.update_manifest(settings={"limit": value})
    for name in (*LOGS, "manifest.json"):
        text = (tmp_path / name).read_text()
        assert "null" in text
        for line in [text] if name == "manifest.json" else text.splitlines():
            json.loads(line, parse_constant=pytest.fail)  # called for NaN and Infinity only
    assert run.scalars() == [{"step": 1, "x": None, "y": 1}]
    assert run.training() == [{"step": 1, "x": None}]
    assert run.events()[0].share_before is None


def test_training_keeps_numbers_only_and_scalars_keep_text(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, MANIFEST)
    run.append_training(1, {"loss": 1, "note": "warm", "flag": True, "many": np.ones(3), "none": None, "step": 99})
    assert run.training() == [{"step": 1, "loss": 1}]
    run.append_scalars(1, {"signal": "ok", "flag": np.True_, "many": np.ones(2), "path": Path("a")})
    assert run.scalars() == [{"step": 1, "signal": "ok", "flag": True, "many": [1.0, 1.0], "path": "a"}]


def test_the_manifest_is_rewritten_without_a_temporary_file_left(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, {**MANIFEST, "pid": np.int64(3), "where": tmp_path})
    run.update_manifest(status="finished", wandb={"id": "x"})
    manifest = RunFolder.open(tmp_path).manifest
    assert manifest == {
        **MANIFEST,
        "format": 2,
        "pid": 3,
        "where": str(tmp_path),
        "status": "finished",
        "wandb": {"id": "x"},
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "scores"]


def test_pairs_of_families(tmp_path: Path) -> None:
    probes = SimpleNamespace(
        families=("b", "a", "b", "a", "a"),
        fingerprint="f",
        tokenizer_name="t",
        texts=(("", ""),) * 5,
        answers=torch.ones(5, 2),
    )
    run = RunFolder.create(tmp_path, {**MANIFEST, "probes": describe_probes(probes)})
    assert run.families == ("b", "a")
    assert run.pairs_of("a").tolist() == [1, 3, 4]
    assert run.pairs_of("b").tolist() == [0, 2]
    with pytest.raises(UserError, match=r"family='c'.*b, a"):
        run.pairs_of("c")
    run.update_manifest(probes={"n_pairs": 5, "families": ["a", "b"]})
    with pytest.raises(UserError, match="pair_families"):
        run.pairs_of("a")
    run.update_manifest(probes={"n_pairs": 5, "families": ["a"]})
    assert run.pairs_of("a").tolist() == [0, 1, 2, 3, 4]


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGS)
def test_a_log_cut_at_any_byte_keeps_every_complete_line(name: str, tmp_path: Path) -> None:
    run = filled(tmp_path)
    readers: dict[str, Callable[[], list[Any]]] = {
        "scalars.jsonl": run.scalars,
        "training.jsonl": run.training,
        "events.jsonl": run.events,
        "alerts.jsonl": run.alerts,
    }
    read = readers[name]
    whole = (tmp_path / name).read_bytes()
    rows = read()
    last_line = whole[whole.rstrip(b"\n").rfind(b"\n") + 1 :]
    for cut in range(1, len(last_line)):
        (tmp_path / name).write_bytes(whole[:-cut])
        if cut == 1:  # only the newline is missing: nothing is lost
            assert read() == rows
            continue
        with pytest.warns(UserWarning, match=f"{name}, line {len(whole.splitlines())}: cut short"):
            assert read() == rows[:-1]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_row_is_appended_on_a_new_line_after_an_incomplete_one(cut: int, tmp_path: Path) -> None:
    filled(tmp_path)
    log = tmp_path / "scalars.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    again = RunFolder.open(tmp_path)
    again.append_scalars(50, {"seconds": 7.0})
    again.append_scalars(60, {"seconds": 8.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = [row["step"] for row in again.scalars()]
    assert steps == [0, 10, 20, 30, *([40] if cut == 1 else []), 50, 60]


def test_an_incomplete_character_is_ignored(tmp_path: Path) -> None:
    run = filled(tmp_path)
    with open(tmp_path / "scalars.jsonl", "ab") as file:
        file.write('{"step": 50, "note": "é'.encode()[:-1])
    with pytest.warns(UserWarning, match="line 6: cut short"):
        assert len(run.scalars()) == 5


def test_half_written_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing fails before the rename: the record is unchanged, and a later write succeeds."""
    run = filled(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk is gone")))
        for step in (40, 50):
            with pytest.raises(OSError, match="disk is gone"):
                run.write_scores(step, scores(99))
        with pytest.raises(OSError, match="disk is gone"):
            run.update_manifest(status="finished")
    assert run.steps == [0, 10, 20, 30, 40]
    np.testing.assert_array_equal(run.read_scores(40).head_scores, scores(40).head_scores)
    assert run.manifest["status"] == "running"
    run.write_scores(50, scores(50))
    assert run.steps[-1] == 50


def test_a_damaged_scores_file_is_named(tmp_path: Path) -> None:
    run = filled(tmp_path)
    path = tmp_path / "scores" / "step-00000020.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"step-00000020.safetensors cannot be read"):
        run.read_scores(20)
    with pytest.raises(UserError, match=r"no scores of step 25; it has \[0, 10"):
        run.read_scores(25)


def test_a_run_is_readable_while_it_is_written(tmp_path: Path) -> None:
    """A reader opened before the first probe reads each probe as soon as it is written."""
    run = RunFolder.create(tmp_path / "headwatch", MANIFEST)
    reader = RunFolder.open(tmp_path)
    assert reader.steps == reader.scalars() == reader.training() == reader.events() == []
    for step in range(0, 30, 10):
        run.write_scores(step, scores(step))
        run.append_scalars(step, {"seconds": 1.0})
        assert reader.steps[-1] == step
        assert reader.scalars()[-1]["step"] == step
    run.update_manifest(status="finished")
    assert reader.manifest["status"] == "finished"


# --- starting again, resuming ---------------------------------------------------------------------------------------


def test_create_moves_an_older_record_aside(tmp_path: Path) -> None:
    before = everything(filled(tmp_path))
    (tmp_path / "report.html").write_text("not part of the record")
    run = RunFolder.create(tmp_path, MANIFEST)
    assert run.steps == run.scalars() == []
    assert everything(RunFolder.open(tmp_path / "previous-1")) == before
    assert (tmp_path / "report.html").exists()
    RunFolder.create(tmp_path, MANIFEST)
    assert (tmp_path / "previous-2" / "manifest.json").exists()
    assert everything(RunFolder.open(tmp_path / "previous-1")) == before


def test_a_cut_and_resumed_record_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole")
    resumed = filled(tmp_path / "resumed")
    aside = resumed.cut_after(20)
    assert aside == tmp_path / "resumed" / "resumed-1"
    assert resumed.steps == [0, 10, 20]
    assert [row["step"] for row in resumed.scalars()] == [0, 10, 20]
    assert max(row["step"] for row in resumed.training()) == 20
    assert {e.step for e in resumed.events()} == {0, 10, 20}
    # What was cut is complete.
    assert sorted(p.name for p in (aside / "scores").iterdir()) == [
        "step-00000030.safetensors",
        "step-00000040.safetensors",
    ]
    for name in LOGS:
        both = (resumed.path / name).read_text() + (aside / name).read_text()
        assert both == (whole.path / name).read_text()
    again = RunFolder.open(tmp_path / "resumed")
    for step in (30, 40):
        again.write_scores(step, scores(step))
        again.append_scalars(step, {"seconds": step + 0.5})
        again.append_events([event(step), event(step, head=1)])
        again.append_alerts([{"step": step, "kind": "unstable", "text": "too unstable"}])
        for training_step in range(step - 4, step + 1, 2):
            again.append_training(training_step, {"loss": training_step / 100})
    for name in LOGS:
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert again.steps == whole.steps


def test_probes_can_be_cut_earlier_than_the_training_log(tmp_path: Path) -> None:
    run = filled(tmp_path)
    aside = run.cut_after(30, last_probe=20)
    assert aside is not None
    assert run.steps == [row["step"] for row in run.scalars()] == [row["step"] for row in run.alerts()] == [0, 10, 20]
    assert run.training()[-1]["step"] == 30
    assert sorted(p.name for p in (aside / "scores").iterdir())[0] == "step-00000030.safetensors"


def test_a_copy_is_the_same_record_and_moves_an_older_one_aside(tmp_path: Path) -> None:
    run, older = filled(tmp_path / "a"), filled(tmp_path / "b", range(0, 20, 10))
    (run.path / "base_answers.safetensors").write_bytes(b"kept")
    before = everything(run)
    copy = run.copy_to(tmp_path / "b")
    assert [pair for pair in everything(copy) if not pair[0].startswith("previous-1")] == list(before)
    assert everything(run) == before
    assert RunFolder.open(older.path / "previous-1").steps == [0, 10]


def test_a_cut_moves_an_incomplete_line_and_does_nothing_where_nothing_is_later(tmp_path: Path) -> None:
    run = filled(tmp_path)
    untouched = everything(run)
    assert run.cut_after(44) is None
    assert everything(run) == untouched
    log = tmp_path / "scalars.jsonl"
    log.write_bytes(log.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="cut short"):
        aside = run.cut_after(30)
    assert aside is not None
    assert (aside / "scalars.jsonl").read_text().startswith('{"step": 40')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row["step"] for row in run.scalars()] == [0, 10, 20, 30]
    assert run.cut_after(0) == tmp_path / "resumed-2"
    assert run.steps == [0]


def test_rows_of_a_resume_without_a_cut_replace_the_earlier_ones(tmp_path: Path) -> None:
    run = filled(tmp_path)
    run.append_scalars(30, {"seconds": -1.0})
    run.append_training(22, {"loss": -1.0})
    run.append_events([event(30, head=2)])
    assert [(row["step"], row["seconds"]) for row in run.scalars()] == [(0, 0.5), (10, 10.5), (20, 20.5), (30, -1.0)]
    assert run.training()[-1] == {"step": 22, "loss": -1.0}
    assert [(e.step, e.head) for e in run.events()][-2:] == [(20, 1), (30, 2)]


def test_a_history_continued_after_a_cut_equals_that_of_the_whole_run(tmp_path: Path) -> None:
    whole = write_synthetic_run(tmp_path / "whole", seed=5)
    cut = write_synthetic_run(tmp_path / "cut", seed=5)
    cut.cut_after(50)
    history = HeadHistory.from_run(cut)
    expected = HeadHistory.from_run(whole)
    pairs = whole.pairs_of(whole.families[0])
    for step in whole.steps[6:]:
        read = whole.read_scores(step)
        history.add(step, read.head_scores[pairs], read.metric_clean[pairs], read.metric_corrupted[pairs])
    assert history.events == expected.events
    assert (history.state == expected.state).all()


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_path_that_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing does not exist") as error:
        RunFolder.open(tmp_path / "missing")
    assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match=r"is not a run folder: looked for manifest.json and headwatch/manifest.json"
    ) as error:
        RunFolder.open(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json cannot be read"):
        RunFolder.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        RunFolder.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 3}')
    with pytest.raises(UserError, match="format 3; this headwatch reads 1 and 2"):
        RunFolder.open(tmp_path)


def test_open_accepts_the_trainers_output_dir(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "headwatch", MANIFEST)
    assert RunFolder.open(tmp_path).path == tmp_path / "headwatch"
    assert RunFolder.open(str(tmp_path / "headwatch")).path == tmp_path / "headwatch"


@pytest.mark.parametrize(
    ("name", "shape"),
    [("correct", (4,)), ("kl_from_base", (5, 1)), ("importance", (2, 3)), ("circuit_active", (1, 3, 2))],
)
def test_an_array_of_the_wrong_shape_is_named(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"{name} has shape"):
        scores(**{name: np.zeros(shape)})  # type: ignore[arg-type]
