"""Trainings that FSDP2 or ZeRO-3 shards over two processes: same weights, the scores of one process, failures agreed.

`benchmarks/processes.py` runs the whole table (docs/evidence/processes.md).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cpu_accelerator import FSDP2, zero
from helpers.sharded_runs import HAS_DEEPSPEED, ended, same, torchrun
from helpers.tiny_trainers import save_tiny_model
from transformers import AutoModelForCausalLM

from headwatch import ProbeSet, RunFolder, score_edges
from headwatch.record.packed_edges import RELATIVE

SHARDINGS = ["FSDP2", pytest.param("ZeRO-3", marks=pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed absent"))]


def runs(changes: dict[str, Any]) -> dict[str, Any]:
    sft = {"kind": "sft", "changes": {"max_steps": 3, **changes}}
    return {
        "sft": sft,
        "watched": {**sft, "watch": {"every": 2, "strict": True}},
        "one-rank-fails": {**sft, "watch": {"every": 1, "scoring": {"edges": False}, "fails_on": [1, 8]}},
    }


@pytest.fixture(scope="module", params=SHARDINGS)
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """All runs of one sharding: its name, where they are, and what was printed."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    save_tiny_model(folder / "model")
    changes = {"deepspeed": zero(3)} if kind == "ZeRO-3" else {}
    # TRL's activation checkpointing is on, as by default.
    result = torchrun(folder, runs({"gradient_checkpointing": True, **changes}), FSDP2 if kind == "FSDP2" else {})
    assert result.returncode == 0, result.stderr[-4000:]
    return kind, folder, result.stdout + result.stderr


def test_weights_are_bit_identical(out: tuple[str, Path, str]) -> None:
    kind, folder, _ = out
    for rank in (0, 1):
        without = ended(folder, "sft", rank)
        assert without["sharding"] == kind  # not DDP, which accelerate runs on a CPU instead
        assert same(without, ended(folder, "watched", rank))
    assert RunFolder.open(folder / "watched").steps == [0, 2, 3]


def test_scores_are_those_of_one_process(out: tuple[str, Path, str]) -> None:
    _, folder, _ = out
    run = RunFolder.open(folder / "watched")
    probes = ProbeSet.load(run.path / "probes.safetensors")
    edges = score_edges(AutoModelForCausalLM.from_pretrained(folder / "model"), probes)
    base = run.read_scores(0)
    largest = float(edges.heads.per_pair.abs().max())
    assert np.allclose(base.head_scores, edges.heads.per_pair.numpy(), rtol=0, atol=1e-5 * largest)
    for family, found in zip(run.families, base.edges_mean_abs, strict=True):
        expected = edges.select(family).mean_abs().numpy()
        assert np.allclose(found, expected, rtol=RELATIVE, atol=1e-5 * expected.max())


def test_a_probe_that_fails_on_one_rank_ends_probing_on_both(out: tuple[str, Path, str]) -> None:
    _, folder, printed = out
    for rank in (0, 1):
        assert same(ended(folder, "sft", rank), ended(folder, "one-rank-fails", rank))
    run = RunFolder.open(folder / "one-rank-fails")
    assert run.manifest["status"] == "failed"
    assert len(run.steps) < 4
    assert printed.count("fails on one rank only") == printed.count("another process failed") == 1
