"""The W&B sink online, against a server on the loopback that answers, and one that goes away.

Each run is a process of its own: what matters is that it ends, and wandb's own last words are spoken at its exit.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.wandb_files import read_run
from helpers.wandb_server import WandbServer

SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from headwatch.sinks import WandbSink, wandb_run
wandb_run.INIT_TIMEOUT_S, wandb_run.EXIT_TIMEOUT_S = 3.0, 3.0
sink = WandbSink("start", project="tests")
figure = {"life": {"data": [{"type": "scatter", "y": [1.5]}], "layout": {}}}
for step in range(3):
    sink.log(step, {"active": step}, figure)
    if step == 0:
        print("started", sink.run_info()["url"], flush=True)
        input()
if "dies" in sys.argv:
    raise RuntimeError("the training failed")
sink.finish(timeout=5)
print("done", flush=True)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


class Training:
    """The script in its process, waiting after its first probe for `go_on`."""

    def __init__(self, server: WandbServer, folder: Path, *words: str) -> None:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        wandb = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_DIR": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words],
            env={**plain, **wandb, "HOME": str(folder), "WANDB_SILENT": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.started = self.process.stdout.readline()

    def go_on(self) -> tuple[str, str]:
        """Let it run to its end; what it printed, and its log."""
        try:
            return self.process.communicate("\n", timeout=100)
        finally:
            self.process.kill()


def steps_on_disk(folder: Path, kind: str) -> list[int]:
    (file,) = folder.glob(f"wandb/{kind}-*/run-*.wandb")
    return [row["train/global_step"] for row in read_run(file).rows]


def test_rows_and_figures_arrive(server: WandbServer, tmp_path: Path) -> None:
    training = Training(server, tmp_path)
    assert training.started.startswith(f"started {server.url}/me/tests/runs/")
    printed, log = training.go_on()
    assert (printed, training.process.returncode) == ("done\n", 0), log
    assert [(row["train/global_step"], row["headwatch/active"]) for row in server.rows] == [(0, 0), (1, 1), (2, 2)]
    figures = {
        name: content for name, content in server.files.items() if name.startswith("media/plotly/headwatch/life")
    }
    assert len(figures) == 3
    assert all(json.loads(content)["data"][0]["y"] == [1.5] for content in figures.values())
    assert not [operation for operation in server.operations if "Artifact" in operation]  # what a Table would need


@pytest.mark.slow
def test_a_server_that_goes_away_keeps_nobody_waiting(server: WandbServer, tmp_path: Path) -> None:
    training = Training(server, tmp_path)
    server.away = True
    printed, log = training.go_on()
    assert (printed, training.process.returncode) == ("done\n", 0), log
    assert steps_on_disk(tmp_path, "run") == [0, 1, 2]


@pytest.mark.slow
def test_a_training_that_dies_while_the_server_is_away_still_exits(server: WandbServer, tmp_path: Path) -> None:
    training = Training(server, tmp_path, "dies")
    server.away = True
    printed, log = training.go_on()
    assert (printed, training.process.returncode) == ("", 1)
    assert "the training failed" in log


@pytest.mark.slow
def test_a_server_that_is_away_from_the_start_means_an_offline_run(server: WandbServer, tmp_path: Path) -> None:
    server.away = True
    training = Training(server, tmp_path)
    assert training.started == "started None\n"
    printed, log = training.go_on()
    assert (printed, training.process.returncode) == ("done\n", 0), log
    assert "no online W&B run" in log
    assert steps_on_disk(tmp_path, "offline-run") == [0, 1, 2]
