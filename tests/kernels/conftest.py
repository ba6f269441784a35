"""Triton kernels on a GPU if there is one, else on the CPU in Triton's interpreter.

triton decides when it is first imported whether it interprets, so without a GPU `test_interpreter.py` runs the other
files in a process of its own.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if torch.cuda.is_available() or INTERPRETED:
    collect_ignore = ["test_interpreter.py"]
else:
    collect_ignore_glob = ["test_kernels_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the kernels."""
    return torch.device("cpu" if INTERPRETED else "cuda")
