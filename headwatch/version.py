"""The version of headwatch, and of every package that a run was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

PACKAGES = ("headwatch", "torch", "transformers", "trl", "peft", "accelerate", "wandb", "numpy")


def versions() -> dict[str, str]:
    """Python's version and that of every package here that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
