"""Runs the tests of the kernels in a process whose triton interprets them on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)  # less than 20 CPU seconds, but of a machine that may be busy
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(Path(__file__).parent),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
