"""Ceilings for what a pass costs on a GPU: kernels, synchronisations, traffic and memory, counted on meta tensors.

Qwen2.5-Math-1.5B's shapes, 64 openers (200 shared tokens, 16 of their own), 5 points, bf16, one batch. The counts are
deterministic; `python benchmarks/gpu_model.py --where` lists what they consist of.
"""

from types import ModuleType

import pytest
import torch
from helpers.benches import bench
from torch import nn

from headwatch.attribution.settings import ScoringSettings


@pytest.fixture(scope="module")
def model() -> nn.Module:
    tool = bench("gpu_model")
    return tool.meta_model(tool.SHAPES["qwen2.5-math-1.5b"]())


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return bench("gpu_model")


def test_the_counter_counts_what_runs(tool: ModuleType) -> None:
    counter = bench("pass_counter")
    layer = nn.Linear(4, 3, device="meta")
    x = torch.empty(2, 4, device="meta")

    def run() -> None:
        y = layer(x.to(torch.float32)).relu()  # one matrix product; `to` copies nothing
        y.cpu()
        float(y.detach().sum())
        torch.ones(5).to("meta")

    counts = counter.counted(layer, run)
    assert counts.by_name == {"addmm": 1, "relu": 1, "sum": 1, "_to_copy": 1}
    assert counts.operations == 2 * 2 * 4 * 3
    assert counts.bytes_by_name["addmm"] == 4 * (3 + 2 * 4 + 4 * 3 + 2 * 3)
    assert sum(counts.synchronisations.values()) == 3  # download, number, upload


@pytest.mark.parametrize(
    ("edges", "kernels", "synchronisations", "gigabytes", "gib"),
    [(True, 9280, 36, 496, 16.9), (False, 7295, 24, 350, 13.3)],
)
def test_openers_stay_under_their_ceilings(
    tool: ModuleType, model: nn.Module, edges: bool, kernels: int, synchronisations: int, gigabytes: float, gib: float
) -> None:
    probes = tool.random_pairs(151936, 64, 200, 16, seed=0)
    counts = tool.count_pass(model, probes, ScoringSettings(edges=edges, batch_size=64))
    assert len(counts.kernels) <= kernels
    assert sum(counts.synchronisations.values()) <= synchronisations
    assert counts.bytes <= gigabytes * 1e9
    assert counts.peak_bytes <= gib * 2**30
