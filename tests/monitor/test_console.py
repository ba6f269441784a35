"""The lines that a training prints."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.synthetic_runs import write_synthetic_run

from headwatch.lives.events import PENDING, Event
from headwatch.monitor import console


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "headwatch.console"]


def test_confirmed_events_have_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    emerged = Event(300, "recall", 17, 3, "emerged", 0.025, 0.06, q_value=0.0031)
    dropped = Event(300, "recall", 2, 0, "dropped", 0.1, -0.001, q_value=1e-9)
    pending = Event(300, "recall", 4, 1, "emerged", 0.0, 0.1, q_value=0.02, status=PENDING)
    circuit = Event(300, "recall", 5, 5, "emerged", 0.0, 0.1, rule="circuit")
    console.say_events(300, [emerged, pending, circuit, dropped])
    assert lines(caplog) == [
        "headwatch: step 300: L17.H3 emerged on recall (share 2.5 % -> 6.0 %, q 0.003)",
        "headwatch: step 300: L2.H0 was dropped on recall (share 10.0 % -> -0.1 %, q 1e-09)",
    ]
    caplog.clear()
    console.say_events(300, [emerged] * 9)
    assert len(lines(caplog)) == console.MAX_EVENTS + 1
    assert lines(caplog)[-1] == "headwatch: step 300: 3 more events, in the report"


def test_opening_and_closing_lines(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "headwatch", steps=(0, 10), n_pairs=8)
    console.say_opened(run, 10, 1.234)
    console.say_closed(run)
    assert lines(caplog) == [
        f"headwatch: record in {run.path}; 16 pairs of addition and recall; a probe every 10 steps; "
        "the last one took 1.2 s",
        f"headwatch: 2 probes recorded; write the report: headwatch report {tmp_path}",
    ]


def test_a_probe_every_step_and_no_lines(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "headwatch", steps=(0, 1), n_pairs=8)
    with console.no_lines():
        console.say_opened(run, 1, 104.2)
    console.say_opened(run, 1, 104.2)
    (line,) = lines(caplog)
    assert line.endswith("; a probe every step; the last one took 104 s")


def test_the_patching_of_the_base_is_stated_where_it_takes_long(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run = write_synthetic_run(tmp_path / "headwatch", steps=(0, 1), n_pairs=8)
    console.say_opened(run, 10, 665.0, 471.0)
    console.say_opened(run, 10, 16.0, 3.0)
    first, second = lines(caplog)
    assert first.endswith("; the base probe took 11 min, of which 8 min for exact patching, once")
    assert second.endswith("; the last one took 16 s")


def test_lines_are_printed_without_logging_set_up_and_can_be_silenced() -> None:
    script = "import logging\nfrom headwatch.monitor.console import say\nsay('one')\n"
    script += "logging.getLogger('headwatch.console').disabled = True\nsay('two')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line for line in done.stderr.splitlines() if line.startswith("headwatch")] == ["headwatch: one"]


def test_a_warning_is_a_line_above_the_bars_and_printed_once() -> None:
    script = """
import logging, sys
from tqdm import tqdm
from headwatch.monitor.console import print_above_bars, say
print_above_bars()
print_above_bars()
with tqdm(total=2, file=sys.stderr, desc="bar") as bar:
    bar.update()
    logging.getLogger("headwatch.monitor.probe_writer").warning("one warning")
    say("one line")
logging.basicConfig(format="by logging: %(message)s", level="INFO")
logging.getLogger("headwatch.monitor.probe_writer").warning("another")
say("another line")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [
        line.strip() for line in done.stderr.replace("\r", "\n").splitlines() if " another" in line or "one" in line
    ]
    assert lines == ["one warning", "headwatch: one line", "by logging: another", "by logging: headwatch: another line"]


def test_bar_of_a_long_probe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for delay, shown, expected in ((0.0, True, True), (60.0, True, False), (0.0, False, False)):
        monkeypatch.setattr(console, "DELAY", delay)
        progress = console.ProbeProgress(lambda rows, *_: seen.append(len(rows)), "headwatch probe, step 100", 4, shown)
        for _ in range(2):
            progress(torch.arange(2), None, None)
        progress.close()
        assert ("headwatch probe, step 100" in capsys.readouterr().err) is expected
    assert seen == [2] * 6
    assert logging.getLogger("headwatch.console").level == logging.INFO
