"""Going on after a checkpoint: the note in it, the record that it leads to, and what is refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from transformers import TrainerCallback

from headwatch import EvidenceSettings, HeadWatchCallback, ProbeSet, RunFolder, UserError
from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save
from headwatch.monitor.resume import SIDECAR
from headwatch.sinks import Sink
from headwatch.sinks.base import Row

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0}  # the same in a run of another length
SAVING = {"save_strategy": "steps", "save_steps": 3, **CONSTANT}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def callback(probes: Any = ("addition", "recall"), **options: Any) -> HeadWatchCallback:
    return HeadWatchCallback(probes, **{"every": 2, "n_pairs": 8, "strict": True, **options})


@pytest.fixture(scope="module")
def begun(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 4 steps with a checkpoint at step 3, not to be written to."""
    output = tmp_path_factory.mktemp("begun")
    sft_trainer(model, output, [callback()], max_steps=4, **SAVING).train()
    return output


def resume(model: Path, begun: Path, output: Path, *callbacks: TrainerCallback, step: int = 3, **changes: Any) -> Any:
    """Go on in a copy of what was begun."""
    if not output.exists():
        shutil.copytree(begun, output)
    trainer = sft_trainer(model, output, callbacks, **{"max_steps": 6, **CONSTANT, **changes})
    trainer.train(resume_from_checkpoint=str(output / f"checkpoint-{step}"))
    return trainer


def test_the_checkpoint_has_a_note(begun: Path) -> None:
    note = json.loads((begun / "checkpoint-3" / SIDECAR).read_text())
    manifest = RunFolder.open(begun).manifest
    assert note["record"] == "../headwatch"
    assert (note["step"], note["last_probe"]) == (3, 2)
    assert note["fingerprint"] == manifest["probes"]["fingerprint"]
    assert note["model"] == {"n_layers": 2, "n_heads": 4}
    assert note["wandb"] is None


def test_a_moved_output_folder_is_gone_on_with(model: Path, begun: Path, tmp_path: Path) -> None:
    watch = callback()
    resume(model, begun, tmp_path / "moved", watch)
    run = RunFolder.open(tmp_path / "moved")
    assert run.steps == [0, 2, 4, 6]
    assert watch.histories["addition"].steps == [0, 2, 4, 6]
    assert run.manifest["status"] == "finished"
    last = run.scalars()[-1]  # what needs the base or the earlier probes is there too
    assert last["addition/kl_from_base"] > 0
    assert [len(c) for c in watch._recorder._correct.values()] == [4, 4]


def test_a_checkpoint_of_another_folder_leads_to_a_copy_of_its_record(model: Path, begun: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in (begun / "headwatch").rglob("*"))
    trainer = sft_trainer(
        model, tmp_path, [callback()], max_steps=6, resume_from_checkpoint=str(begun / "checkpoint-3"), **CONSTANT
    )
    trainer.train(resume_from_checkpoint=str(begun / "checkpoint-3"))
    run = RunFolder.open(tmp_path)
    assert run.steps == [0, 2, 4, 6]
    assert np.array_equal(run.read_scores(0).head_scores, RunFolder.open(begun).read_scores(0).head_scores)
    assert sorted(path.name for path in (begun / "headwatch").rglob("*")) == before


def test_a_probe_taken_only_because_training_ended_is_taken_back(model: Path, tmp_path: Path) -> None:
    whole = sft_trainer(model, tmp_path / "whole", [callback()], max_steps=6, **CONSTANT)
    whole.train()
    sft_trainer(model, tmp_path / "cut", [callback()], max_steps=3, **SAVING).train()
    cut = RunFolder.open(tmp_path / "cut")
    assert cut.steps == [0, 2, 3]
    resume(model, tmp_path, tmp_path / "cut", callback())
    assert cut.steps == RunFolder.open(tmp_path / "whole").steps == [0, 2, 4, 6]
    assert [row["step"] for row in cut.training()] == [1, 2, 3, 4, 5, 6]
    assert (cut.path / "resumed-1" / "scores" / "step-00000003.safetensors").is_file()
    assert cut.events() == RunFolder.open(tmp_path / "whole").events()


REFUSED = {
    "other families": ({"probes": ("addition",)}, "probes=8 pairs (addition)"),
    "another seed": ({"seed": 1}, "fingerprint"),
    "more pairs": ({"n_pairs": 9}, "probes=18 pairs"),
    "another metric": ({"scoring": {"metric": "nll"}}, "scoring.metric='nll'"),
    "more points": ({"scoring": {"steps": 6}}, "scoring.steps=6"),
    "heads alone": ({"scoring": {"edges": False}}, "scoring.edges=False"),
    "another rule": ({"evidence": EvidenceSettings(q=0.05)}, "evidence="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_break_the_history_is_refused(name: str, model: Path, begun: Path, tmp_path: Path) -> None:
    options, words = REFUSED[name]
    output = tmp_path / "out"
    shutil.copytree(begun, output)
    before = {path: path.read_bytes() for path in (output / "headwatch").rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        resume(model, begun, output, callback(**options))
    said = str(caught.value)
    assert words in said
    assert "\n" not in said
    assert "move" in said  # the way out
    assert {path: path.read_bytes() for path in (output / "headwatch").rglob("*") if path.is_file()} == before


def test_another_model_is_refused(begun: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(begun / "headwatch", output / "headwatch")
    tokenizer = build_tokenizer()
    size = ModelSize(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_mlp=48)
    other = save(build_model(tokenizer, size), tokenizer, tmp_path / "model3")
    sft_trainer(other, output, max_steps=3, **SAVING).train()
    with pytest.raises(UserError, match=r"3 layers x 4 heads.*2 x 4"):
        resume(other, begun, output, callback())


def test_the_old_pairs_can_be_named_by_their_file(model: Path, begun: Path, tmp_path: Path) -> None:
    resume(model, begun, tmp_path / "out", callback(begun / "headwatch" / "probes.safetensors"))
    assert RunFolder.open(tmp_path / "out").steps == [0, 2, 4, 6]


def test_another_schedule_is_no_other_history(model: Path, begun: Path, tmp_path: Path) -> None:
    resume(model, begun, tmp_path / "out", callback(every=3))
    assert RunFolder.open(tmp_path / "out").steps == [0, 2, 6]


def test_a_record_of_another_run_is_left_and_said(
    model: Path, begun: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    shutil.copytree(begun, output)
    RunFolder.open(output).update_manifest(created="2001-01-01T00:00:00+00:00")
    resume(model, begun, output, callback())
    assert "events are recorded from here on" in caplog.text
    run = RunFolder.open(output)
    assert run.steps == [3, 4, 6]
    assert RunFolder.open(run.path / "previous-1").steps == [0, 2, 4]


@pytest.mark.parametrize("gone", [SIDECAR, "base_answers.safetensors"])
def test_a_record_without_its_note_or_its_base_is_gone_on_with(
    gone: str, model: Path, begun: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(begun, output)
    for file in output.rglob(gone):
        file.unlink()
    resume(model, begun, output, callback())
    run = RunFolder.open(output)
    assert run.steps == [0, 2, 4, 6]
    assert ("addition/kl_from_base" in run.scalars()[-1]) == (gone == SIDECAR)


def test_a_note_that_cannot_be_left_ends_nothing(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("headwatch.monitor.resume.write_atomic", full)
    sft_trainer(model, tmp_path, [callback()], max_steps=6, **SAVING).train()
    assert RunFolder.open(tmp_path).steps == [0, 2, 4, 6]
    assert caplog.text.count("no space left on device") == 1


def test_the_wandb_run_that_was_begun_is_gone_on_with(
    model: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from helpers.wandb_files import offline_runs

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    output = tmp_path / "out"
    sft_trainer(model, output, [callback(wandb="start")], max_steps=4, **SAVING).train()
    (first,) = offline_runs(tmp_path)
    assert json.loads((output / "checkpoint-3" / SIDECAR).read_text())["wandb"]["id"] == first.id
    resume(model, output, output, callback(wandb="start"))
    wandb.teardown()
    logged_runs = offline_runs(tmp_path)
    assert {run.id for run in logged_runs} == {first.id}  # two pieces of one run, for `wandb sync`
    assert sorted(row["train/global_step"] for run in logged_runs for row in run.with_key("headwatch/")) == [
        0,
        2,
        4,
        4,
        6,
    ]


def test_figures_that_cannot_be_made_do_not_end_the_probing(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ArithmeticError("no figure today")

    class Draws(Sink):
        def show(self, row: Row) -> None:
            assert callable(row.figures)
            row.figures()

    monkeypatch.setattr("headwatch.monitor.sink_rows.figure_data.all_figures", fails)
    monkeypatch.setattr("headwatch.callback.make_sinks", lambda *_, **__: [Draws()])
    sft_trainer(model, tmp_path, [callback()]).train()
    run = RunFolder.open(tmp_path)
    assert run.steps == [0, 2, 4, 5]
    assert run.manifest["status"] == "finished"
    assert caplog.text.count("no figure today") == 1


def test_alerts_are_in_the_record_and_said_once_a_kind(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sft_trainer(model, tmp_path, [callback(n_pairs=4)]).train()
    run = RunFolder.open(tmp_path)
    assert {row["kind"] for row in run.alerts()} == {"insufficient_data"}
    assert len(run.alerts()) == 2 * 4  # two families, four probes
    row = run.scalars()[-1]
    assert (row["alerts"], row["alerts/insufficient_data"], row["alerts/inexact"]) == (2, 2, 0)
    assert "4 pairs where 8 are needed" in row["alerts_text"]
    assert caplog.text.count("4 pairs where 8 are needed") == 1


def test_probes_are_the_same_set_again(begun: Path) -> None:
    """What the comparison on resuming rests on: the same options give the same fingerprint."""
    tokenizer = build_tokenizer()
    again = ProbeSet.generate(["addition", "recall"], tokenizer, n_pairs=8, seed=0)
    assert again.fingerprint == RunFolder.open(begun).manifest["probes"]["fingerprint"]
