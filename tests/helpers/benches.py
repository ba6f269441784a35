"""The benchmarks of this repository as modules."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

BENCHES = Path(__file__).parents[2] / "benchmarks"


def bench(name: str) -> ModuleType:
    """Import one file of benchmarks/."""
    sys.path.insert(0, str(BENCHES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHES))
