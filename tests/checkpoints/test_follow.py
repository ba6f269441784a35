"""`headwatch follow`: the record of a folder of checkpoints is the callback's."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import wandb
from helpers.same_record import same_history
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from helpers.wandb_files import offline_runs
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files_on_every_rank
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch import HeadWatchCallback, RunFolder
from headwatch.cli import main

PROBES = ["--probes", "addition", "recall", "--pairs", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's output_dir with checkpoint-2, checkpoint-4 and checkpoint-5, and the callback's record."""
    output = tmp_path_factory.mktemp("trained")
    watch = HeadWatchCallback(["addition", "recall"], every=2, n_pairs=8, strict=True)
    sft_trainer(model, output, [watch], save_strategy="steps", save_steps=2).train()
    return output


def test_adapters_as_the_callback_scored_them(model: Path, tmp_path: Path) -> None:
    called = tmp_path / "called"
    watch = HeadWatchCallback(["addition"], every=2, n_pairs=8, strict=True, folder=called)
    sft_trainer(model, tmp_path / "out", [watch], max_steps=4, lora=True, save_strategy="steps", save_steps=2).train()
    options = ["--every", "2", "--probes", "addition", "--pairs", "8", "--device", "cpu", "--no-report"]
    assert main(["follow", str(tmp_path / "out"), *options]) == 0  # the adapter names its base
    same_history(RunFolder.open(tmp_path / "out"), RunFolder.open(called))


def lay_out(trained: Path, folder: Path, path: str, steps: tuple[int, ...] = (2, 4)) -> None:
    """The weights of a training in another layout, without what only the Trainer writes."""
    for step in steps:
        target = folder / path.format(step)
        target.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(trained / f"checkpoint-{step}" / name, target / name)


@pytest.mark.parametrize(
    ("path", "marker", "options"),
    [
        ("global_step_{}/actor/huggingface", "latest_checkpointed_iteration.txt", []),
        ("weights/step_{}", "STABLE", []),
        ("ckpt/global_step{}_hf", "", []),
        ("epoch/iter_{}", "", ["--pattern", r"epoch/iter_(\d+)"]),
    ],
    ids=["verl", "prime-rl", "openrlhf", "pattern"],
)
def test_other_layouts(path: str, marker: str, options: list[str], trained: Path, model: Path, tmp_path: Path) -> None:
    """Folders made by hand after the documentation or the source of these trainers."""
    folder = tmp_path / "run"
    lay_out(trained, folder, path)
    if "_hf" in path:  # OpenRLHF also saves DeepSpeed's own checkpoints
        (folder / "ckpt" / "_actor" / "global_step2").mkdir(parents=True)
    if marker == "STABLE":
        (folder / "weights" / "step_2" / marker).touch()
    elif marker:
        (folder / marker).write_text("2")
    command = ["follow", str(folder), "--base", str(model), "--settled", "0", "--no-report", *PROBES, *options]
    assert main(command) == 0
    run = RunFolder.open(folder)
    assert run.steps == ([0, 2] if marker else [0, 2, 4])  # step 4 is not marked as written
    for step in run.steps:
        assert (run.read_scores(step).head_scores == RunFolder.open(trained).read_scores(step).head_scores).all()


def write_as_torchtitan(weights: dict[str, Tensor], folder: Path, files: int) -> None:
    """The Hugging Face export of torchtitan's last step (checkpoint.last_save_in_hf), by the same functions of torch.

    One file has an index. Several, as many as the model that the training began with, have none, and both come without
    a config.json.
    """
    if files == 1:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True)
        dcp.save(weights, storage_writer=writer)
        return
    places = {name: 1 + index % files for index, name in enumerate(weights)}
    sharded = str(folder / "sharded")
    writer = HuggingFaceStorageWriter(sharded, fqn_to_index_mapping=places, save_distributed=True)
    dcp.save(weights, storage_writer=writer)
    consolidate_safetensors_files_on_every_rank(sharded, str(folder), places, num_threads=1)


def test_torchtitan_exports_take_the_configuration_of_the_base(
    trained: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DCP checkpoints before the last step are left out, in one line that names torchtitan's converter."""
    folder = tmp_path / "outputs"
    for step, files in ((4, 1), (5, 2)):
        weights = load_file(trained / f"checkpoint-{step}" / "model.safetensors")
        write_as_torchtitan(weights, folder / "checkpoint" / f"step-{step}", files)
    assert sorted(path.name for path in (folder / "checkpoint" / "step-5").iterdir()) == [
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "sharded")
    ]
    half = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)  # the precision is that of the weights
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "half")
    dcp.save(weights, checkpoint_id=folder / "checkpoint" / "step-2")
    for path in (folder / "checkpoint" / "step-2").iterdir():
        os.utime(path, (1e9, 1e9))
    os.utime(folder / "checkpoint" / "step-2", (1e9, 1e9))
    command = ["follow", str(folder), "--base", str(tmp_path / "half"), "--settled", "0", "--no-report", *PROBES]
    assert main([*command, "--dry-run"]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert plan[0].startswith("layout: torchtitan; base, step 0: ")
    assert "step 2: checkpoint/step-2: not complete yet (the weights in step-2 are sharded (DCP)" in plan[1]
    assert plan[2:] == [f"step {step}: checkpoint/step-{step}: to score" for step in (4, 5)]
    assert not (folder / "headwatch").exists()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "convert_to_hf.py" in found["skipped"]["step-2"]
    run = RunFolder.open(folder)
    assert run.steps == [0, 4, 5]
    for step in run.steps[1:]:
        assert (run.read_scores(step).head_scores == RunFolder.open(trained).read_scores(step).head_scores).all()


def test_without_probes_a_look_at_the_base_chooses_the_families(trained: Path, model: Path, tmp_path: Path) -> None:
    options = ["--every", "2", "--pairs", "8", "--heads-only", "--device", "cpu", "--no-report"]
    assert main(["follow", str(trained), "--base", str(model), "--out", str(tmp_path / "run"), *options]) == 0
    run = RunFolder.open(tmp_path / "run")
    assert run.steps == [0, 2, 4, 5]
    called = tmp_path / "called"
    watch = HeadWatchCallback(n_pairs=8, scoring={"edges": False}, every=100, folder=called)
    sft_trainer(model, tmp_path / "out", [watch], max_steps=1).train()
    assert run.manifest["probes"] == RunFolder.open(called).manifest["probes"]


def test_wandb_rows_are_the_callbacks(
    trained: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.teardown()  # wandb reads its environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    command = ["follow", str(trained), "--base", str(model), "--out", str(tmp_path / "run"), "--no-report", *PROBES]
    assert main([*command, "--every", "2", "--report-to", "wandb"]) == 0
    rows = [row for row in offline_runs(tmp_path)[0].rows if "headwatch/addition/active" in row]
    assert [row["train/global_step"] for row in rows] == [0, 2, 4, 5]
    run = RunFolder.open(tmp_path / "run")
    for row, scalars in zip(rows, run.scalars(), strict=True):
        assert row["headwatch/recall/active"] == scalars["recall/active"]
    assert run.manifest["wandb"]["id"]


def test_one_line_for_a_mistake(trained: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    several = tmp_path / "several"
    lay_out(trained, several, "sft/checkpoint-{}")
    for step in (0, 5):
        weights = load_file(trained / "checkpoint-5" / "model.safetensors")
        write_as_torchtitan(weights, tmp_path / "titan" / f"step-{step}", 1)
    for arguments, line in (
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(tmp_path / "empty"), "--base", str(model)], "no checkpoint in it; it may be checkpoint-N"),
        ([str(several), "--base", str(model)], f"no checkpoint in it, but in {several / 'sft'}: give that"),
        ([str(trained), "--out", str(tmp_path / "run")], "--base is missing"),
        ([str(trained), "--base", str(model)], "made during training: give another folder with --out"),
        ([str(tmp_path / "titan"), "--settled", "0"], "step-0' has no config.json: give --base"),
        ([str(trained), "--pattern", "("], "is not a regular expression"),
        ([str(trained), "--pattern", "x"], "has no group"),
    ):
        assert main(["follow", *arguments]) == 2
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1
