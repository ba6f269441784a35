"""Trainings that share a folder, and trainings that raise: who writes the record, and what its status is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_trainers import sft_trainer
from transformers import TrainerState

from headwatch import HeadWatchCallback, ProbeSet, RunFolder, UserError
from headwatch.record.owner import claim
from headwatch.report.html import run_data


def test_two_callbacks_of_one_trainer_are_refused(tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    trainer = sft_trainer(tiny_model, tmp_path, [HeadWatchCallback(probes)])
    trainer.add_callback(HeadWatchCallback(probes, every=7))
    with pytest.raises(UserError, match=r"folder=.*give each callback its own folder"):
        trainer.train()


def test_two_callbacks_with_folders_of_their_own(tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    watches = [HeadWatchCallback(probes, every=5, folder=tmp_path / name, strict=True) for name in ("one", "other")]
    sft_trainer(tiny_model, tmp_path, watches).train()
    assert [RunFolder.open(tmp_path / name).status for name in ("one", "other")] == ["finished", "finished"]


def test_status_of_a_training_that_raised(tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    """The exception ends the process; then nobody writes the record, and it did not finish."""
    code = (
        "import sys; from pathlib import Path; from transformers import TrainerCallback;"
        "from helpers.tiny_trainers import sft_trainer; from headwatch import HeadWatchCallback\n"
        "class Raises(TrainerCallback):\n"
        "    def on_step_end(self, *_, **__): raise RuntimeError('the training failed')\n"
        "watch = HeadWatchCallback(sys.argv[3], every=1)\n"
        "sft_trainer(Path(sys.argv[1]), Path(sys.argv[2]), [watch, Raises()]).train()"
    )
    probes.save(tmp_path / "probes.safetensors")
    words = [sys.executable, "-c", code, str(tiny_model), str(tmp_path), str(tmp_path / "probes.safetensors")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert "the training failed" in done.stderr
    run = RunFolder.open(tmp_path)
    assert run.steps == [0, 1]
    assert run.manifest["status"] == "running"
    assert run.status == "interrupted"
    assert run_data(run)["status"] == "interrupted"


def test_a_training_whose_record_was_taken_over_goes_on(tiny_model: Path, probes: ProbeSet, tmp_path: Path) -> None:
    watch = HeadWatchCallback(probes, every=1)
    trainer = sft_trainer(tiny_model, tmp_path, [watch])
    state = TrainerState()
    taken = []

    class Takes(HeadWatchCallback):
        def on_step_end(self, args, state_, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
            if not taken:
                taken.append(claim(tmp_path / "headwatch", state))

    trainer.add_callback(Takes(probes, folder=tmp_path / "else"))
    trainer.train()
    assert trainer.state.global_step == 5
    assert watch.run is None
    assert taken[0].is_held
    taken[0].release()


def test_no_path_and_no_secret_in_the_record(
    tiny_model: Path, probes: ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    probes.save(tmp_path / "mine.safetensors")
    watch = HeadWatchCallback(tmp_path / "mine.safetensors", every=5, folder=tmp_path / "record", strict=True)
    sft_trainer(tiny_model, tmp_path / "output", [watch], hub_token="hf_othersecret", save_strategy="epoch").train()
    files = [path for path in (tmp_path / "record").rglob("*") if path.is_file()]
    files += list((tmp_path / "output").rglob("headwatch_state.json"))
    assert len(files) >= 7
    for path in files:
        data = path.read_bytes()
        for secret in (str(tmp_path), str(tiny_model), "hf_secret", "hf_othersecret", "k" * 40):
            assert secret.encode() not in data, (path, secret)
