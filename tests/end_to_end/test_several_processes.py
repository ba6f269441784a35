"""Two processes under torchrun: one record, the pairs shared, the same weights, and agreement on failures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_trainers import same_weights, save_tiny_model
from transformers import AutoModelForCausalLM

from headwatch import ProbeSet, RunFolder, patch_heads, score_edges
from headwatch.monitor.distributed import ERROR, OK, USER_ERROR, agree, from_main, world
from headwatch.monitor.sharded_scoring import PairShard
from headwatch.record.packed_edges import RELATIVE

pytestmark = pytest.mark.slow

SAVING = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant", "warmup_steps": 0}
SIGNAL = {"min_gap_t": 0.0}  # so that the base probe patches heads: the tiny model answers nothing correctly
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "sft-watched": {"kind": "sft", "watch": {"every": 2, "strict": True, "patching": "all", "evidence": SIGNAL}},
    "grpo": {"kind": "grpo", "changes": {"generation_batch_size": 8}},
    "grpo-watched": {
        "kind": "grpo",
        "changes": {"generation_batch_size": 8},
        "watch": {"every": 2, "strict": True, "scoring": {"edges": False}},
    },
    "one-rank-fails": {"kind": "sft", "watch": {"every": 1, "scoring": {"edges": False}, "fails_on": [1, 8]}},
    "record-fails": {"kind": "sft", "watch": {"every": 1}, "record_fails": 2},
    "put-off": {"kind": "sft", "watch": {"every": 1, "max_overhead": 1e-9, "strict": True}},
    "begun": {"kind": "sft", "watch": {"every": 2, "strict": True}, "changes": {"max_steps": 4, **SAVING}},
    "whole": {"kind": "sft", "watch": {"every": 2, "strict": True}, "changes": {"max_steps": 6, **SAVING}},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All runs one after the other, in the same two processes; where they are, and what was printed."""
    folder = tmp_path_factory.mktemp("ddp")
    model = save_tiny_model(folder / "model")
    resumed = {**RUNS["begun"], "changes": {"max_steps": 6, **SAVING}, "resume": str(folder / "begun" / "checkpoint-3")}
    runs = {**RUNS, "resumed": {**resumed}}
    order = folder / "order.json"
    # The resumed run has the folder of the one that was begun.
    runs["begun "] = runs.pop("resumed")
    order.write_text(json.dumps({"model": str(model), "runs": {}}))
    here = Path(__file__).parents[1] / "helpers"
    paths = os.pathsep.join(filter(None, [str(here), str(here.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    said = ""
    for part in ({k: v for k, v in runs.items() if k != "begun "}, {"begun": runs["begun "]}):
        order.write_text(json.dumps({"model": str(model), "runs": part}))
        result = subprocess.run(
            [*torchrun, str(here / "train_on_ranks.py"), str(order)],
            capture_output=True,
            text=True,
            timeout=280,
            env=environment,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        said += result.stdout + result.stderr
    return folder, said


def weights(folder: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}-{rank}.pt")


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_training_is_bit_identical_and_there_is_one_record(kind: str, out: tuple[Path, str]) -> None:
    folder, _ = out
    for rank in (0, 1):
        assert same_weights(weights(folder, kind, rank), weights(folder, f"{kind}-watched", rank))
    run = RunFolder.open(folder / f"{kind}-watched")
    assert run.steps == {"sft": [0, 2, 4, 5], "grpo": [0, 2, 4]}[kind]
    assert [row["step"] for row in run.scalars()] == run.steps
    assert not list(run.path.glob("previous-*"))
    assert run.manifest["status"] == "finished"


def test_shared_pairs_are_scored_as_one_process_scores_them(out: tuple[Path, str]) -> None:
    folder, _ = out
    run = RunFolder.open(folder / "sft-watched")
    probes = ProbeSet.load(run.path / "probes.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    edges = score_edges(model, probes)
    base = run.read_scores(0)
    scale = float(edges.heads.per_pair.abs().max())
    assert np.allclose(base.head_scores, edges.heads.per_pair.numpy(), atol=1e-5 * scale)
    assert np.array_equal(base.correct, edges.heads.readings.correct.numpy())
    assert np.allclose(base.edges_mean_abs[1], edges.select("recall").mean_abs().numpy(), RELATIVE, 1e-5 * scale)
    row = run.scalars()[0]
    assert row["completeness_error"] == pytest.approx(edges.checks.completeness, rel=1e-3)
    assert (run.read_scores(0).kl_from_base == 0).all()
    assert (run.read_scores(5).kl_from_base > 0).all()  # of every pair, whoever scored it


def test_heads_are_patched_on_shared_pairs_as_one_process_patches_them(out: tuple[Path, str]) -> None:
    folder, _ = out
    run = RunFolder.open(folder / "sft-watched")
    probes = ProbeSet.load(run.path / "probes.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    expected = patch_heads(model, probes, direction="noising").per_pair.numpy()
    assert np.allclose(run.read_scores(0).patched.reshape(expected.shape), expected, atol=1e-5)


def test_a_probe_that_fails_on_one_rank_ends_probing_on_both(out: tuple[Path, str]) -> None:
    folder, said = out
    for rank in (0, 1):
        assert same_weights(weights(folder, "sft", rank), weights(folder, "one-rank-fails", rank))
    run = RunFolder.open(folder / "one-rank-fails")
    assert run.manifest["status"] == "failed"
    assert run.steps[0] == 0
    assert len(run.steps) < 6
    assert "fails on one rank only" in said
    assert "another process failed" in said


def test_a_record_that_fails_on_the_main_process_ends_probing_on_both(out: tuple[Path, str]) -> None:
    folder, _ = out
    for rank in (0, 1):
        assert same_weights(weights(folder, "sft", rank), weights(folder, "record-fails", rank))
    assert RunFolder.open(folder / "record-fails").steps == [0, 1, 2]


def test_resuming_goes_on_with_the_same_history(out: tuple[Path, str]) -> None:
    folder, _ = out
    run, expected = RunFolder.open(folder / "begun"), RunFolder.open(folder / "whole")
    assert run.steps == expected.steps == [0, 2, 4, 6]
    for step in run.steps:
        mine, yours = run.read_scores(step).arrays(), expected.read_scores(step).arrays()
        assert all(np.array_equal(mine[name], yours[name]) for name in yours)
    assert same_weights(weights(folder, "begun", 0), weights(folder, "whole", 0))


def test_one_process_needs_nothing_of_this() -> None:
    assert world() == (0, 1)
    assert [agree(outcome) for outcome in (OK, ERROR, USER_ERROR)] == [OK, ERROR, USER_ERROR]
    assert from_main("value") == "value"
    share = PairShard.of(5)
    assert (share.rows, share.split) == ((0, 1, 2, 3, 4), False)


def test_both_put_off_the_same_probes(out: tuple[Path, str]) -> None:
    folder, _ = out
    assert RunFolder.open(folder / "put-off").steps == [0, 5]
    for rank in (0, 1):
        assert same_weights(weights(folder, "sft", rank), weights(folder, "put-off", rank))
