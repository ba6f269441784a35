"""The trackio sink: what lies in its SQLite file is read back, without its page and without a network."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headwatch.sinks import TrackioSink

# trackio reads TRACKIO_DIR when it is imported, so each case is a process of its own.
READ = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage as storage
rows = {p: {r: storage.get_logs(p, r) for r in storage.get_runs(p)} for p in storage.get_projects()}
print("\\nROWS" + json.dumps(rows, default=str))
"""


def run(folder: Path, script: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What trackio holds after a script: project -> run -> rows."""
    environment = {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(folder)}
    environment |= {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-c", script + READ], capture_output=True, text=True, timeout=240, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.rsplit("\nROWS", 1)[1])


def values(rows: list[dict[str, Any]], name: str) -> list[tuple[int, Any]]:
    return [(row["train/global_step"], row[name]) for row in rows if name in row]


def test_a_run_of_ones_own(tmp_path: Path) -> None:
    script = """
import contextvars, trackio
from headwatch.sinks import TrackioSink
started, init = [], trackio.init
trackio.init = lambda *args, **options: (started.append(1), init(*args, **options))[1]
for begin in (0, 20):
    sink = TrackioSink("mine", "tiny", {"every": 10})
    for step in (begin, begin + 10):  # in contexts of their own, as jobs of the worker
        values, texts = {"active": step, "gap": float("nan")}, {"alerts_text": "too unstable"}
        contextvars.copy_context().run(sink.log, step, values, texts=texts)
    sink.finish()
    sink.finish()
assert len(started) == 2, started
"""
    held = run(tmp_path, script)
    assert list(held["mine"]) == ["tiny"]  # the second time goes on with the first
    rows = held["mine"]["tiny"]
    assert values(rows, "headwatch/active") == [(0, 0), (10, 10), (20, 20), (30, 30)]
    assert values(rows, "headwatch/alerts_text")[0] == (0, "too unstable")
    assert "headwatch/gap" not in rows[0]


def test_the_trainers_run_is_used_left_open_and_gone_on_with_when_it_is_over(tmp_path: Path) -> None:
    script = """
import trackio
from headwatch.sinks import TrackioSink
trackio.init(project="theirs")
sink = TrackioSink("another", "name")
sink.log(0, {"active": 1})
trackio.log({"train/loss": 0.5, "train/global_step": 1})
sink.finish()
assert trackio.context_vars.current_run.get() is not None
trackio.finish()
sink.log(2, {"active": 3})
sink.finish()
"""
    held = run(tmp_path, script)
    assert list(held) == ["theirs"]
    (rows,) = held["theirs"].values()
    assert values(rows, "headwatch/active") == [(0, 1), (2, 3)]
    assert values(rows, "train/loss") == [(1, 0.5)]


@pytest.mark.slow
def test_a_trainer_that_reports_there_has_one_run_with_both(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from helpers.tiny_trainers import save_tiny_model, sft_trainer
from headwatch import HeadWatchCallback
folder = Path({str(tmp_path)!r})
model = save_tiny_model(folder / "model")
watch = HeadWatchCallback("addition", every=2, n_pairs=8, strict=True)
names = dict(project="theirs", run_name="sft", trackio_static_space_id=False)
sft_trainer(model, folder / "out", [watch], report_to=["trackio"], **names).train()
"""
    held = run(tmp_path, script)
    assert [(project, list(runs)) for project, runs in held.items()] == [("theirs", ["sft"])]
    rows = held["theirs"]["sft"]
    assert [step for step, _ in values(rows, "headwatch/alerts")] == [0, 2, 4, 5]
    assert [step for step, _ in values(rows, "train/loss")] == [1, 2, 3, 4, 5]


def test_trackio_not_installed_warns_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    sink = TrackioSink()
    for step in range(5):
        sink.log(step, {"active": 1})
    sink.finish()
    assert caplog.text.count("logging to trackio failed") == 1
