"""CUDA graphs of a run: the record and the weights are those of a run without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cpu_graph import CpuCapture
from helpers.tiny_models import tiny_model
from helpers.tiny_trainers import save_tiny_model, sft_trainer

from headwatch import HeadWatchCallback
from headwatch.attribution.batch_size import default_budget_gb
from headwatch.monitor import run_graphs
from headwatch.monitor.run_graphs import RunGraphs

GIB = 2**30


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of helpers/cpu_graph.py, as if the CPU were a CUDA device."""
    monkeypatch.setattr(run_graphs, "no_graphs_because", lambda model: None)
    monkeypatch.setattr(run_graphs, "CudaCapture", CpuCapture)


def trained(folder: Path, model: Path, cuda_graphs: bool, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The record and the weights of four steps with a probe after each."""
    scoring = {"cuda_graphs": cuda_graphs, "batch_size": 4}
    watch = HeadWatchCallback(["addition", "carry"], every=1, n_pairs=12, scoring=scoring, strict=True)
    trainer = sft_trainer(model, folder, [watch], max_steps=4, **options)
    trainer.train()
    assert watch.run is not None
    assert trainer.model is not None
    return watch.run, {name: own.clone() for name, own in trainer.model.state_dict().items()}


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_with_graphs_has_the_same_scores_and_weights(lora: bool, tmp_path: Path, on_cpu: None) -> None:
    model = save_tiny_model(tmp_path / "model")
    plain, expected = trained(tmp_path / "plain", model, False, bf16=True, lora=lora)
    found, weights = trained(tmp_path / "graphs", model, True, bf16=True, lora=lora)
    assert "cuda_graphs" not in plain.manifest
    entry = found.manifest["cuda_graphs"]
    assert entry["off"] is None
    assert entry["graphs"] >= 1
    assert found.steps == plain.steps == [0, 1, 2, 3, 4]
    for step in found.steps:
        one, other = (run.read_scores(step) for run in (found, plain))
        assert (one.head_scores == other.head_scores).all()
    assert all(torch.equal(own, expected[name]) for name, own in weights.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lora", [False, True])
def test_cuda_graphs_of_a_training(lora: bool, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    (plain, expected), (found, weights) = (
        trained(tmp_path / str(graphs), model, graphs, bf16=True, lora=lora) for graphs in (False, True)
    )
    entry = found.manifest["cuda_graphs"]
    assert entry["off"] is None
    assert entry["graphs"] >= 1
    assert entry["memory_mb"] > 0
    for step in found.steps:
        one, other = (run.read_scores(step).head_scores for run in (found, plain))
        assert abs(one - other).max() <= 1e-3 * abs(other).max()
    assert all(torch.equal(own, expected[name]) for name, own in weights.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the model is on a GPU")
def test_without_a_gpu_there_is_one_line_and_no_graph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, _ = trained(tmp_path / "run", save_tiny_model(tmp_path / "model"), True)
    assert caplog.text.count("no CUDA graphs: the model is on cpu") == 1
    assert found.manifest["cuda_graphs"] == {"graphs": 0, "memory_mb": None, "off": "the model is on cpu"}
    assert found.manifest["status"] == "finished"


def test_graphs_are_given_up_after_a_pass_that_failed(on_cpu: None) -> None:
    model, graphs = tiny_model("llama", torch.float32), RunGraphs(wanted=True, speaks=True)
    own = graphs.of(model)
    assert own is not None
    graphs.after_pass(ValueError("before any graph"))
    assert graphs.of(model) is own
    own._graphs["a batch"] = None  # type: ignore[assignment]
    graphs.after_pass(torch.OutOfMemoryError("out of memory"))
    assert graphs.of(model) is None
    assert graphs.to_record() == {
        "graphs": 0,
        "memory_mb": None,
        "off": "a pass failed (OutOfMemoryError: out of memory)",
    }
    assert graphs.to_record() is None  # once


def test_the_default_budget_leaves_more_to_the_training() -> None:
    """Memory of graphs is kept from probe to probe."""
    model = tiny_model("llama", torch.float32)
    assert default_budget_gb(model, 40 * GIB, kept=True) == pytest.approx(default_budget_gb(model, 40 * GIB) / 2)
