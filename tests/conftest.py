"""Settings that every test shares. This file also makes pytest put tests/ on the path, so that tests import
`tiny` and `wandb_reader` by name.
"""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models and tokenizers are made here; nothing is downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Files that take longest, mostly because they start processes: first, so that two workers end together.
LONGEST = (
    *("test_sharded.py", "test_exactness.py", "test_no_trace.py", "test_killed.py", "test_interpreter.py"),
    *("test_run_layout.py", "test_read_only_sharded.py", "test_trainers.py", "test_resume.py", "test_recipes.py"),
    "test_resumed_recipes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="module", autouse=True)
def no_wandb_run_is_left() -> Iterator[None]:
    """A run that a trainer leaves live would be the live run of the next module's trainings, whichever that is."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()  # alone, the teardown would leave `wandb.run` as it is
        wandb.teardown()
