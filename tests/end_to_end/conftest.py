"""One tiny model on disk and one probe set, shared by all runs."""

from pathlib import Path

import pytest
from helpers.tiny_trainers import save_tiny_model
from transformers import AutoTokenizer

from headwatch import ProbeSet


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def probes(tiny_model: Path) -> ProbeSet:
    return ProbeSet.generate(["addition", "carry"], AutoTokenizer.from_pretrained(tiny_model), n_pairs=6, seed=0)
