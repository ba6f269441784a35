"""Half-written checkpoints are left until they are whole."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from headwatch.checkpoints.layouts import LAYOUTS, Checkpoint, find_checkpoints
from headwatch.checkpoints.wholeness import is_whole_safetensors, missing
from headwatch.commands.follow import LAYOUTS as NAMES
from headwatch.errors import UserError


def write(folder: Path, shards: int = 2) -> Path:
    """A checkpoint as transformers writes it, in the order in which it writes it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    names = [f"model-{i}-of-{shards}.safetensors" for i in range(shards)]
    for name in names:
        save_file({name: torch.ones(100)}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: name for name in names}}))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": 3}))
    return folder


def only(folder: Path) -> Checkpoint:
    (checkpoint,) = find_checkpoints(folder)
    return checkpoint


def test_every_prefix_of_a_checkpoint_being_written_is_incomplete(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole" / "checkpoint-3")
    assert missing(only(tmp_path / "whole")) == ""
    order = sorted(whole.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    partial = tmp_path / "partial" / "checkpoint-3"
    partial.mkdir(parents=True)
    for path in order:
        content = path.read_bytes()
        for part in (0, len(content) // 2, len(content) - 1):
            (partial / path.name).write_bytes(content[:part])
            assert missing(only(tmp_path / "partial")), (path.name, part)
        (partial / path.name).write_bytes(content)
    assert missing(only(tmp_path / "partial")) == ""


def test_without_a_marker_files_must_not_change_for_a_while(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint-3")
    (folder / "trainer_state.json").unlink()
    assert missing(only(tmp_path)) == "its files are still changing"
    for path in (folder, *folder.iterdir()):
        os.utime(path, (1e9, 1e9))
    assert missing(only(tmp_path)) == ""


def test_a_safetensors_file_is_as_long_as_its_header_states(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path)
    content = path.read_bytes()
    assert is_whole_safetensors(path)
    for length in (0, 7, 8, 40, len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_whole_safetensors(path)


def test_sharded_weights_are_explained(tmp_path: Path) -> None:
    actor = tmp_path / "verl" / "global_step_5" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "model_world_size_2_rank_0.pt").touch()
    assert "model_merger" in missing(only(tmp_path / "verl"))
    (tmp_path / "fsdp" / "checkpoint-5" / "pytorch_model_fsdp_0").mkdir(parents=True)
    assert "accelerate merge-weights" in missing(only(tmp_path / "fsdp"))


def test_dcp_checkpoints_are_explained(tmp_path: Path) -> None:
    """As torch writes them, in the folders of torchtitan and of NeMo-RL."""
    for folder in ("titan/step-5", "nemo/step_5/policy/weights"):
        dcp.save({"weight": torch.ones(3)}, checkpoint_id=tmp_path / folder)
    lacks = missing(only(tmp_path / "titan"))
    assert lacks.startswith("the weights in step-5 are sharded (DCP): convert them to the Hugging Face format with tor")
    assert "convert_dcp_to_hf.py" in missing(only(tmp_path / "nemo"))


def test_shards_without_an_index_are_whole_when_all_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "step-5"
    folder.mkdir()
    for number in (1, 2):
        assert missing(only(tmp_path), 0.0)
        save_file({str(number): torch.ones(3)}, folder / f"model-0000{number}-of-00002.safetensors")
    assert missing(only(tmp_path), 0.0) == ""


def test_temporary_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("tmp-checkpoint-3", "checkpoint-3.tmp", ".checkpoint-3", "checkpoint-x", "checkpoint-12"):
        (tmp_path / name).mkdir()
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path)] == [12]


def test_two_folders_of_one_step_are_refused(tmp_path: Path) -> None:
    (tmp_path / "step_3").mkdir()
    (tmp_path / "weights" / "step_3").mkdir(parents=True)
    with pytest.raises(UserError, match="are both step 3"):
        find_checkpoints(tmp_path)


def test_the_commands_layouts_are_all() -> None:
    assert tuple(LAYOUTS) == NAMES
