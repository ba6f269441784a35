"""Runs with corrupted edges equal the naive reference; the full circuit is the clean run, the empty the corrupted."""

import pytest
import torch
from helpers.tiny_models import has_sdpa, largest_error, random_openers, random_pairs, tiny_model

from headwatch import Anatomy
from headwatch.analysis.edge_ablation import run_circuits
from headwatch.analysis.naive_edge_ablation import naive_run_circuits

FAMILIES = ["qwen2", "qwen3", "llama-biases", "gemma2-biases", "gemma3", "gpt2", "neox", "olmo2", "phi3", "granite"]


def random_circuits(anatomy: Anatomy, shares: tuple[float, ...], seed: int = 0) -> torch.Tensor:
    """A random circuit for each share of the edges, bool [C, S, R]."""
    real = anatomy.is_real()
    values = torch.rand(len(shares), *real.shape, generator=torch.Generator().manual_seed(seed))
    return real & (values < torch.tensor(shares)[:, None, None])


def names(anatomy: Anatomy, kept: torch.Tensor) -> list[set[tuple[str, str]]]:
    return [{(anatomy.sources[s], anatomy.targets[r]) for s, r in one.nonzero().tolist()} for one in kept]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_circuits_equal_the_naive_reference(architecture: str) -> None:
    model = tiny_model(architecture, attention="sdpa" if has_sdpa(architecture) else "eager")
    anatomy = Anatomy.of(model)
    kept = random_circuits(anatomy, (0.0, 0.3, 0.8, 1.0))
    for probes in (random_pairs(2), random_openers(1)):
        found, readings = run_circuits(model, probes, kept)
        assert largest_error(found, naive_run_circuits(model, probes, names(anatomy, kept))) < 1e-9
        torch.testing.assert_close(found[0], readings.metric_corrupted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found[-1], readings.metric_clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", ["kl", "nll"])
def test_metrics_and_batches(metric: str) -> None:
    model, probes = tiny_model("qwen2"), random_pairs(5, reads=2)
    anatomy = Anatomy.of(model)
    kept = random_circuits(anatomy, (0.2, 0.5, 0.9))
    expected = naive_run_circuits(model, probes, names(anatomy, kept), metric)
    assert largest_error(run_circuits(model, probes, kept, metric)[0], expected) < 1e-9
    single = tiny_model("qwen2", torch.float32)  # pairs of several lengths share padded batches
    for budget in (None, 1e-4):
        assert largest_error(run_circuits(single, probes, kept, metric, memory_budget_gb=budget)[0], expected) < 1e-4


def test_an_edge_of_one_query_head_of_a_group() -> None:
    """Query heads share keys and values, but an edge into one head's key leaves the others' keys clean."""
    model, probes = tiny_model("qwen2"), random_pairs(2)
    anatomy = Anatomy.of(model)
    assert anatomy.heads_per_kv > 1
    values = []
    for head in range(anatomy.heads_per_kv):
        kept = anatomy.is_real()
        kept[anatomy.sources.index("a0.h0"), anatomy.targets.index(f"a1.h{head}.k")] = False
        values.append(run_circuits(model, probes, kept[None])[0][0])
    assert not torch.allclose(values[0], values[1])
