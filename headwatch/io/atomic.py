"""Atomic file writes."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new, never part of it.

    The content goes to a temporary file in the same folder, is flushed to disk, and then replaces `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
