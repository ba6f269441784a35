"""TensorBoard: scalars and texts, in the trainer's own log folder, so that both appear as one run."""

import os
from pathlib import Path
from typing import Any

from headwatch.sinks.base import PREFIX, FailureBreaker, Row, Sink


class TensorBoardSink(Sink):
    """Show probes in TensorBoard.

    Args:
        folder: log folder; the event file written there is separate from the trainer's, and TensorBoard reads both.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._writer: Any = None
        self._breaker = FailureBreaker("writing for TensorBoard")

    def show(self, row: Row) -> None:
        """Write the scalars and texts of one probe and flush them to disk."""
        if self._breaker.is_open or not (row.scalars or row.texts):
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # A resumed training hides the rows that an earlier file has from its first step on.
                self._writer = SummaryWriter(
                    str(self._folder), purge_step=row.step if row.step else None, filename_suffix=".headwatch"
                )
            for name, value in row.scalars.items():
                self._writer.add_scalar(PREFIX + name, value, row.step)
            for name, text in row.texts.items():
                if text:
                    self._writer.add_text(PREFIX + name, text, row.step)
            self._writer.flush()
        except Exception as error:
            self._breaker.record(error)

    def finish(self, timeout: float = 30.0) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def trainer_log_folder(output_dir: str | os.PathLike[str]) -> Path:
    """Log folder of transformers' TensorBoard callback: $TENSORBOARD_LOGGING_DIR, or the newest folder in runs/."""
    if given := os.environ.get("TENSORBOARD_LOGGING_DIR"):
        return Path(given).expanduser()
    runs = Path(output_dir) / "runs"
    folders = [path for path in runs.glob("*") if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime, default=runs / "headwatch")
