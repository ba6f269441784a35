"""Folders of weights that lack what transformers needs to load them: a configuration, or the index of several files.

torchtitan exports such folders.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from transformers import AutoConfig

from headwatch.errors import UserError

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")


def shards_of(folder: Path) -> list[str]:
    """Names of all weight files of a folder, those still to be written too, by the total in the names of those there.

    >>> shards_of(Path("no such folder"))
    []
    """
    totals = {match[2] for path in folder.glob("model-*.safetensors") if (match := SHARD.fullmatch(path.name))}
    return [f"model-{str(i).zfill(len(t))}-of-{t}.safetensors" for t in totals for i in range(1, int(t) + 1)]


@contextmanager
def completed(folder: Path, base: str | Path | None = None) -> Iterator[Path]:
    """The folder; inside the block one of links to its files with what it lacks, if it lacks something.

    Args:
        folder: of a model; a path that is no folder is returned as it is.
        base: the model whose configuration is used where there is none.

    Raises:
        UserError: there is no configuration and no base.
    """
    shards = shards_of(folder)
    has_config = (folder / CONFIG).is_file() or not folder.is_dir()
    has_index = not shards or (folder / INDEX).is_file() or (folder / "model.safetensors").is_file()
    if has_config and has_index:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="headwatch-") as temporary:
        linked = Path(temporary)
        for path in folder.iterdir():
            (linked / path.name).symlink_to(path.resolve())
        if not has_config:
            if base is None:
                raise UserError(
                    f"model {str(folder)!r} has no config.json: give --base, the model that its training began with, "
                    "whose configuration is used"
                )
            config = AutoConfig.from_pretrained(base)
            config.dtype = None  # the weights decide: base may have been saved in another precision
            config.save_pretrained(linked)
        if not has_index:
            weights: dict[str, str] = {}
            for name in shards:
                with safe_open(folder / name, framework="numpy") as file:
                    weights |= dict.fromkeys(file.keys(), name)
            (linked / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}), encoding="utf-8")
        yield linked
