"""Triton kernels on a GPU if there is one, else on the CPU in Triton's interpreter.

triton decides when it is first imported whether it interprets, so without a GPU `test_interpreter.py` runs the other
files in a process of its own.
"""

import os
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if torch.cuda.is_available() or INTERPRETED:
    collect_ignore = ["test_interpreter.py", *(["test_compiled.py"] if INTERPRETED else [])]
else:
    collect_ignore_glob = ["test_kernels_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the kernels."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session", autouse=INTERPRETED)
def rounding_to_nearest() -> Any:
    """Let the interpreter (triton 3.9) round float32 to bfloat16 as a GPU does: to nearest. It drops the lower bits."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        exact = torch.from_numpy(np.array(values).view(np.float32))
        return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", rounded)
        yield
