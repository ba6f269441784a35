"""Read what W&B wrote for an offline run, without a server: history rows, media, metric definitions.

A .wandb file is a header, then LevelDB log framing (blocks of 32 KiB, records split into fragments) around protobuf
records (wandb/proto/wandb_internal.proto).
"""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as proto

BLOCK = 32768
HEADER = struct.Struct("<IHB")  # checksum, length, fragment type
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4

Row = dict[str, Any]


@dataclass
class WandbRun:
    """One run as it lies on disk."""

    folder: Path
    id: str = ""
    project: str = ""
    rows: list[Row] = field(default_factory=list)
    summary: Row = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)  # name or glob -> its step metric
    hidden: dict[str, bool] = field(default_factory=dict)  # name or glob -> whether it is kept from automatic panels
    config: Row = field(default_factory=dict)
    alerts: list[tuple[str, str, str]] = field(default_factory=list)  # (title, text, level)
    exit_code: int | None = None

    def with_key(self, start: str) -> list[Row]:
        """The rows that have a key that begins so, without W&B's own keys."""
        return [
            {key: value for key, value in row.items() if not key.startswith("_")}
            for row in self.rows
            if any(key.startswith(start) for key in row)
        ]

    def visible(self, start: str) -> list[str]:
        """Logged keys that begin so and get a panel: numbers and media that are defined, and not as hidden."""
        logged = {
            key
            for row in self.rows
            for key, value in row.items()
            if key.startswith(start) and not isinstance(value, str)
        }
        return sorted(key for key in logged if not self.hidden.get(key, True))

    def media(self) -> list[Path]:
        return sorted(path for path in (self.folder / "files" / "media").rglob("*") if path.is_file())


def offline_runs(folder: Path) -> list[WandbRun]:
    """Every finished offline run under a WANDB_DIR."""
    return [read_run(file) for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))]


def read_run(file: Path) -> WandbRun:
    """A finished run: W&B's own process may write the last records a moment after `run.finish()` returned."""
    for _ in range(200):
        if (run := _read(file)).exit_code is not None:
            return run
        time.sleep(0.05)
    raise TimeoutError(f"{file} has no exit record: was the run finished?")


def _read(file: Path) -> WandbRun:
    run = WandbRun(file.parent)
    for record in _records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.project = record.run.run_id, record.run.project
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key}
        elif kind == "history":
            run.rows.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            run.metrics[name], run.hidden[name] = record.metric.step_metric, record.metric.options.hidden
        elif kind == "config":
            run.config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        elif kind == "alert":
            run.alerts.append((record.alert.title, record.alert.text, record.alert.level))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> Row:
    """The values by key; media and nested dictionaries come as one item a leaf."""
    row: Row = {}
    for item in items:
        *path, leaf = item.nested_key or [item.key]
        inside = row
        for key in path:
            inside = inside.setdefault(key, {})
        inside[leaf] = json.loads(item.value_json)
    return row


def _records(file: Path) -> Iterator[proto.Record]:
    data = file.read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(f"{file} is not a .wandb file")
    position, whole = 7, b""
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        _, length, kind = HEADER.unpack_from(data, position)
        if left < HEADER.size or kind == 0:  # padding at a block's end
            position += left
            continue
        start = position + HEADER.size
        position = start + length
        whole = data[start:position] if kind in (WHOLE, FIRST) else whole + data[start:position]
        if kind in (WHOLE, LAST) and position <= len(data):  # a torn tail of a run that still goes on is left out
            record = proto.Record()
            record.ParseFromString(whole)
            yield record
