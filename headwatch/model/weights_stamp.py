"""A short fingerprint of a saved model: results that are kept for a folder belong to the weights that it held."""

import hashlib
import os
from pathlib import Path

BLOCKS, BLOCK = 16, 4096  # of each weight file: a training changes nearly every weight
ENDINGS = (".safetensors", ".bin")


def weights_stamp(name: str | os.PathLike[str]) -> str | None:
    """First 16 hex digits of the SHA-256 of the weight files: their names, sizes and BLOCKS parts of each.

    Args:
        name: a model; None is returned for one that is no folder, or has no weight files.
    """
    folder = Path(name)
    files = sorted(path for path in folder.glob("*") if path.suffix in ENDINGS) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for part in range(BLOCKS):
                file.seek(part * max(0, size - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]
