"""Whether a checkpoint is whole: all its files are there and completely written."""

import json
import time
from pathlib import Path
from typing import Any

from headwatch.checkpoints.layouts import Checkpoint
from headwatch.model.weight_files import INDEX, shards_of

SETTLED_SECONDS = 30.0  # without a marker, a checkpoint counts as written when no file changed for this long
STALE_SECONDS = 600.0  # an incomplete checkpoint that did not change for this long is not waited for
LATEST = "latest_checkpointed_iteration.txt"
CONVERTER = "the trainer's own tool"
CONVERTERS = {
    "torchtitan": "torchtitan's scripts/checkpoint_conversion/convert_to_hf.py",
    "prime-rl": f"{CONVERTER} (NeMo-RL: examples/converters/convert_dcp_to_hf.py)",  # both name their folders step_N
}


def missing(checkpoint: Checkpoint, settled: float = SETTLED_SECONDS) -> str:
    """What a checkpoint still lacks, in a few words; "" for one that is whole.

    A marker of the trainer decides where its layout has one. Otherwise, no file may have changed for `settled` seconds.
    In both cases the configuration (`--base` has that of a folder with weights alone) and all weights are there, and
    each .safetensors file is as long as its header states.
    """
    if not checkpoint.path.is_dir():
        return _sharded(checkpoint) or f"{checkpoint.path.relative_to(checkpoint.root.parent)} is missing"
    lacks = _weights(checkpoint.path)
    if lacks:
        return _sharded(checkpoint) or lacks
    marked = _marked(checkpoint)
    if marked is None and seconds_unchanged(checkpoint.path) < settled:
        return "its files are still changing"
    if marked is False:
        return f"{'STABLE' if checkpoint.layout.marker == 'STABLE' else LATEST} does not state that it is written"
    return ""


def seconds_unchanged(folder: Path) -> float:
    """Seconds since a file in the folder changed; infinite for a folder that is gone."""
    newest = 0.0
    try:
        for path in (folder, *folder.rglob("*")):
            newest = max(newest, path.stat().st_mtime)
    except OSError:
        return 0.0 if folder.is_dir() else float("inf")
    return time.time() - newest


def _marked(checkpoint: Checkpoint) -> bool | None:
    """Whether the trainer marked the checkpoint as written; None where there is no such marker."""
    kind = checkpoint.layout.marker
    if kind == "STABLE":
        return (checkpoint.root / "STABLE").exists()
    if kind == "state":
        return True if checkpoint.trainer_state() is not None else None
    if kind == "latest":
        try:
            return int((checkpoint.root.parent / LATEST).read_text(encoding="utf-8")) >= checkpoint.step
        except (OSError, ValueError):
            return None
    return None


def _weights(folder: Path) -> str:
    """What is missing of configuration and weights; "" if nothing is."""
    if (folder / "adapter_config.json").is_file():
        if _read_json(folder / "adapter_config.json") is None:
            return "adapter_config.json is incomplete"
        return _files(folder, ["adapter_model.safetensors"], "adapter_model.bin")
    if (folder / "config.json").is_file() and _read_json(folder / "config.json") is None:
        return "config.json is incomplete"
    names, shards = ["model.safetensors"], shards_of(folder)
    if (folder / INDEX).is_file():
        index = _read_json(folder / INDEX)
        if index is None or not isinstance(index.get("weight_map"), dict):
            return f"{INDEX} is incomplete"
        names = sorted(set(index["weight_map"].values()))
    elif shards:  # torchtitan writes no index where its model has one
        names = shards
    elif not (folder / "config.json").is_file() and not (folder / "model.safetensors").is_file():
        return "config.json is missing"
    return _files(folder, names, "pytorch_model.bin")


def _files(folder: Path, names: list[str], pickled: str) -> str:
    for name in names:
        if not (folder / name).is_file():
            if len(names) == 1 and (folder / pickled).is_file():
                return ""
            return f"{name} is missing"
        if not is_whole_safetensors(folder / name):
            return f"{name} is incomplete"
    return ""


def is_whole_safetensors(path: Path) -> bool:
    """Whether a .safetensors file is as long as its header states."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 + length:
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def _sharded(checkpoint: Checkpoint) -> str:
    """What to do about sharded weights; "" if there are none."""
    actor = checkpoint.path.parent
    if any(actor.glob("model_world_size_*_rank_*.pt")) or (actor / "dist_ckpt").is_dir():
        return (
            f"the weights in {actor.relative_to(checkpoint.root.parent)} are sharded: add hf_model to verl's "
            "checkpoint.save_contents, or merge them into huggingface/ with verl's model_merger"
        )
    if any(checkpoint.root.glob("pytorch_model_fsdp_*")):
        return "the weights are sharded: merge them into its folder, for FSDP with `accelerate merge-weights`"
    for below in ("", "*/", "*/*/"):
        shard = next(checkpoint.root.glob(f"{below}*.distcp"), None)
        if shard is not None:
            return (
                f"the weights in {shard.parent.relative_to(checkpoint.root.parent)} are sharded (DCP): convert them to "
                f"the Hugging Face format with {CONVERTERS.get(checkpoint.layout.name, CONVERTER)}, and follow the "
                "folder of the results"
            )
    return ""


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
