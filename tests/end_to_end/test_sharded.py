"""Trainings that FSDP2 or ZeRO-3 shards over two processes: same weights, the scores of one process, failures agreed.

`benchmarks/processes.py` runs the whole table (docs/evidence/processes.md).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cpu_accelerator import FSDP2, zero
from helpers.sharded_runs import HAS_DEEPSPEED, ended, same, torchrun
from helpers.tiny_trainers import load, save_tiny_model
from transformers import AutoModelForCausalLM

from headwatch import ProbeSet, RunFolder, score_edges
from headwatch.record.packed_edges import RELATIVE

HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None
SHARDINGS = ["FSDP2", pytest.param("ZeRO-3", marks=pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed absent"))]


def runs(kind: str, little: int) -> dict[str, Any]:
    # TRL's activation checkpointing is on, as by default.
    changes = {"max_steps": 3, "gradient_checkpointing": True, **({"deepspeed": zero(3)} if kind == "ZeRO-3" else {})}
    sft, watch = {"kind": "sft", "changes": changes}, {"every": 2, "strict": True}
    found: dict[str, Any] = {
        "sft": sft,
        "watched": {**sft, "watch": {**watch, "probes": None}},  # families are chosen by a look at the model
        "one-rank-fails": {**sft, "watch": {"every": 1, "scoring": {"edges": False}, "fails_on": [1, 8]}},
    }
    if kind == "FSDP2":
        found |= {
            "layers": {**found["watched"], "free": little},
            "layers-one-rank-fails": {**sft, "watch": {"every": 1, "fails_on": [1, 8]}, "free": little},
        }
    if kind == "FSDP2" and HAS_BITSANDBYTES:
        qlora = {"kind": "sft", "changes": {**changes, "qlora": True}}
        found |= {"qlora": qlora, "qlora-watched": {**qlora, "watch": watch}}
    return found


@pytest.fixture(scope="module", params=SHARDINGS)
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """All runs of one sharding: its name, where they are, and what was printed."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(folder / "model"))
    little = sum(p.numel() * p.element_size() for p in model.parameters()) - 1
    result = torchrun(folder, runs(kind, little), FSDP2 if kind == "FSDP2" else {})
    assert result.returncode == 0, result.stderr[-4000:]
    return kind, folder, result.stdout + result.stderr


def test_weights_are_bit_identical(out: tuple[str, Path, str]) -> None:
    kind, folder, _ = out
    for rank in (0, 1):
        without = ended(folder, "sft", rank)
        assert without["sharding"] == kind  # not DDP, which accelerate runs on a CPU instead
        assert without["described"] == f"processes: 2, sharding: {kind}"
        assert same(without, ended(folder, "watched", rank))
    assert RunFolder.open(folder / "watched").steps == [0, 2, 3]


def test_qlora(out: tuple[str, Path, str]) -> None:
    """4-bit weights in floating-point storage, which FSDP2 shards: same bits, and the scores of one process."""
    kind, folder, _ = out
    if not (folder / "qlora-0.pt").exists():
        pytest.skip(f"not run under {kind}, or bitsandbytes is absent")
    for rank in (0, 1):
        without = ended(folder, "qlora", rank)
        assert without["sharding"] == kind
        assert same(without, ended(folder, "qlora-watched", rank))
    run = RunFolder.open(folder / "qlora-watched")
    expected = score_edges(load(folder / "model", quantised=True), ProbeSet.load(run.path / "probes.safetensors"))
    largest = float(expected.heads.per_pair.abs().max())
    found = run.read_scores(0).head_scores
    assert np.allclose(found, expected.heads.per_pair.numpy(), rtol=0, atol=1e-5 * largest)
    # Not the scores of the float32 model: the shards really hold 4-bit weights.
    other = score_edges(load(folder / "model"), ProbeSet.load(run.path / "probes.safetensors"))
    assert not np.allclose(found, other.heads.per_pair.numpy(), rtol=0, atol=1e-3 * largest)


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


def test_layer_by_layer_where_whole_weights_do_not_fit(out: tuple[str, Path, str]) -> None:
    """By one byte; tied embeddings, which accelerate shards as one group of several modules, are counted once."""
    kind, folder, printed = out
    if kind != "FSDP2":
        pytest.skip("ZeRO-3 refuses")
    for name in ("layers", "layers-one-rank-fails"):
        assert all(same(ended(folder, "sft", rank), ended(folder, name, rank)) for rank in (0, 1))
    layers, whole = (RunFolder.open(folder / name) for name in ("layers", "watched"))
    assert layers.steps == whole.steps
    for step in whole.steps:  # the ranks of `whole` share the pairs, so their batches differ
        found, expected = (run.read_scores(step).head_scores for run in (layers, whole))
        assert np.allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert printed.count("the whole weights do not fit: probes gather layer by layer") == 2
    assert RunFolder.open(folder / "layers-one-rank-fails").manifest["status"] == "failed"
    assert printed.count("the pass failed on another process") == 1


def test_a_probe_that_fails_on_one_rank_ends_probing_on_both(out: tuple[str, Path, str]) -> None:
    kind, folder, printed = out
    for rank in (0, 1):
        assert same(ended(folder, "sft", rank), ended(folder, "one-rank-fails", rank))
    run = RunFolder.open(folder / "one-rank-fails")
    assert run.manifest["status"] == "failed"
    assert len(run.steps) < 4
    assert printed.count("another process failed") == 1
    assert printed.count("fails on one rank only") == (2 if kind == "FSDP2" else 1)  # and layer by layer
