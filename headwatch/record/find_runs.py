"""Find the run folders that a path stands for."""

import os
from pathlib import Path

from headwatch.record.run_folder import RunFolder

MANIFESTS = ("*/manifest.json", "*/headwatch/manifest.json")


def find_runs(path: str | os.PathLike[str]) -> list[RunFolder]:
    """Open a run folder, a trainer's output_dir, or every run in a folder of them (by the time at which they began).

    Raises:
        UserError: there is no run folder at `path` nor one level below it.
    """
    folder = Path(path)
    if not any((at / "manifest.json").is_file() for at in (folder, folder / "headwatch")):
        below = sorted(manifest.parent for pattern in MANIFESTS for manifest in folder.glob(pattern))
        if below:
            return sorted(map(RunFolder.open, below), key=lambda run: str(run.manifest.get("created") or ""))
    return [RunFolder.open(folder)]
