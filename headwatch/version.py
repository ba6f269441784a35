"""The version of headwatch, and the versions of the packages that a run uses."""

import platform
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

PACKAGES = ("headwatch", "torch", "transformers", "trl", "peft", "accelerate", "wandb", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of those PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
