"""Atomic file writes: a reader or a crash sees the old file or the new one."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, reach the disk, rename: a reader or a crash sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
