"""The fast pass equals the naive reference in every architecture, metric, rule, batch shape and precision."""

import pytest
import torch
from helpers.tiny_models import (
    ARCHITECTURES,
    FLOAT32_ROUTERS,
    FURTHER,
    has_sdpa,
    largest_error,
    random_openers,
    random_pairs,
    tiny_model,
    with_attention,
)

from headwatch import Anatomy, score_edges, score_heads
from headwatch.attribution import ScoringSettings, edge_blocks
from headwatch.attribution import tensor_pool as pool_module
from headwatch.attribution.batch_size import batch_sizes
from headwatch.attribution.edge_blocks import EdgeBlocks
from headwatch.attribution.endpoints import interpolated
from headwatch.attribution.naive import naive_edges, naive_heads
from headwatch.attribution.scoring import score_pairs

METRICS = ("logit_diff", "kl", "nll")
RULES = [(m, a) for m in METRICS for a in ("midpoint", "right", "left", "clean", "ends") if (m, a) != ("kl", "clean")]


@pytest.mark.parametrize(("architecture", "attention"), with_attention())
def test_edges_equal_the_naive_reference_in_every_architecture(architecture: str, attention: str) -> None:
    model, probes = tiny_model(architecture, attention=attention), random_pairs(4)
    expected = naive_edges(model, probes, steps=2)
    for reuse_prefix in (True, False):
        edges = score_pairs(model, probes, ScoringSettings(steps=2), reuse_prefix=reuse_prefix)
        assert largest_error(edges.per_pair, expected) < 1e-9
        assert edges.per_pair[:, ~edges.is_real].abs().max() == 0
        assert edges.checks.row_sums < 1e-9
        assert edges.checks.stream < 1e-9
    heads = score_heads(model, probes, steps=2)
    assert largest_error(heads.per_pair, edges.head_scores().per_pair) < 1e-9


@pytest.mark.parametrize("architecture", list(FURTHER))
def test_edges_equal_the_naive_reference_in_further_architectures(architecture: str) -> None:
    model = tiny_model(architecture, attention="eager")
    limit = 2e-7 if architecture in FLOAT32_ROUTERS else 1e-9
    for probes in (random_pairs(3), random_openers(2)):
        edges = score_edges(model, probes, steps=2)
        assert largest_error(edges.per_pair, naive_edges(model, probes, steps=2)) < limit
        assert edges.checks.row_sums < limit
        assert edges.checks.stream < 1e-9


@pytest.mark.parametrize("at_once", [1, 30])
@pytest.mark.parametrize("architecture", ["llama-biases", "neox", "olmo2"])
def test_layers_per_product(architecture: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the few targets of a tiny model share one product."""
    model, probes = tiny_model(architecture), random_pairs(2)
    monkeypatch.setattr(edge_blocks, "TARGETS_AT_ONCE", at_once)
    blocks = EdgeBlocks(Anatomy.of(model), torch.device("cpu")).targets
    assert len(blocks) == (len(Anatomy.of(model).layers) + 1 if at_once == 1 else 2)
    edges = score_edges(model, probes, steps=2)
    assert largest_error(edges.per_pair, naive_edges(model, probes, steps=2)) < 1e-9
    assert edges.per_pair[:, ~edges.is_real].abs().max() == 0


@pytest.mark.parametrize("tokens", [1, 3, 14])
@pytest.mark.parametrize("architecture", ["llama", "neox", "olmo2"])
def test_pieces_of_any_size(architecture: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token, some tokens of a pair, several pairs; by default a tiny model's tensors are one piece."""
    model, probes = tiny_model(architecture), random_pairs(5)
    anatomy = Anatomy.of(model)
    monkeypatch.setattr(pool_module, "MAX_BYTES", tokens * 8 * len(anatomy.sources) * anatomy.d_model)
    edges = score_edges(model, probes, steps=2)
    assert largest_error(edges.per_pair, naive_edges(model, probes, steps=2)) < 1e-9


@pytest.mark.parametrize(("metric", "alphas"), RULES)
def test_every_metric_and_rule(metric: str, alphas: str) -> None:
    model, probes = tiny_model("qwen2"), random_pairs(4, reads=2)
    expected = naive_edges(model, probes, metric, 3, alphas)
    edges = score_edges(model, probes, metric, 3, alphas)
    assert largest_error(edges.per_pair, expected) < 1e-9
    rows = expected.sum(-1)[:, 1:].unflatten(1, (3, 7))[:, :, :6]
    assert largest_error(score_heads(model, probes, metric, 3, alphas).per_pair, rows) < 1e-9


def test_naive_heads_are_row_sums_of_naive_edges() -> None:
    model, probes = tiny_model("gemma3"), random_pairs(2)
    rows = naive_edges(model, probes, steps=1).sum(-1)[:, 1:].unflatten(1, (3, 7))[:, :, :6]
    assert torch.equal(naive_heads(model, probes, steps=1), rows)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_float32_error(architecture: str) -> None:
    """In float32, unlike float64, pairs of different lengths share a padded batch."""
    probes, attention = random_pairs(), "sdpa" if has_sdpa(architecture) else "eager"
    expected = score_edges(tiny_model(architecture, attention=attention), probes)
    found = score_edges(tiny_model(architecture, torch.float32, attention), probes)
    assert found.per_pair.dtype == torch.float32
    assert largest_error(found.per_pair, expected.per_pair) < 1e-5
    assert largest_error(found.heads.per_pair, expected.heads.per_pair) < 1e-5


@pytest.mark.parametrize("metric", ["kl", "nll"])
def test_read_positions_before_the_first_difference(metric: str) -> None:
    """There the clean and the corrupted run are equal; the metric is a mean over all read positions."""
    model, probes = tiny_model("qwen2"), random_openers(3, suffix=2, reads=4)
    expected = naive_edges(model, probes, metric, 2)
    assert largest_error(score_edges(model, probes, metric, 2).per_pair, expected) < 1e-9


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_padding_on_either_side(side: str, dtype: torch.dtype) -> None:
    probes = random_pairs(side=side)
    expected = naive_edges(tiny_model("qwen2"), probes, steps=2)  # strips the padding
    found = score_edges(tiny_model("qwen2", dtype), probes, steps=2, batch_size=5)
    assert largest_error(found.per_pair, expected) < (1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3}, {"memory_budget_gb": 2e-4}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_size_does_not_change_scores(options: dict[str, float], dtype: torch.dtype) -> None:
    model, probes = tiny_model("qwen2", dtype), random_pairs(n=7)
    whole = score_edges(model, probes, batch_size=7)
    parts = score_edges(model, probes, **options)
    assert largest_error(parts.per_pair, whole.per_pair) < (1e-9 if dtype == torch.float64 else 1e-5)


def test_an_endpoint_of_the_path_is_reproduced_exactly() -> None:
    clean, corrupted = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    middle, *endpoints = interpolated(clean, corrupted, [0.5, 1.0, 0.0])
    assert torch.equal(torch.stack(endpoints), torch.stack([clean, corrupted]))
    assert torch.allclose(middle, (clean + corrupted) / 2)
    (third,) = interpolated(clean, corrupted, [1 / 3])
    assert torch.allclose(third, clean / 3 + 2 * corrupted / 3, atol=1e-6)


def test_a_small_budget_splits_the_path() -> None:
    pairs, points = batch_sizes(Anatomy.of(tiny_model("qwen2")), random_pairs(), 5, None, 2e-4)
    assert pairs == 1
    assert points < 5


def test_a_constant_metric_gives_zeros() -> None:
    def constant(logits, clean_logits, reads):
        return logits.sum((1, 2)) * 0

    edges = score_edges(tiny_model("llama"), random_pairs(), constant)
    assert edges.per_pair.abs().max() == 0
    assert edges.heads.metric == "constant"


def test_a_callable_metric_is_the_named_one() -> None:
    def mine(logits, clean_logits, reads):
        return logits[:, 0].gather(-1, reads.answers) @ torch.tensor([1.0, -1.0], dtype=logits.dtype)

    model, probes = tiny_model("llama"), random_pairs()
    assert torch.allclose(score_edges(model, probes, mine).per_pair, score_edges(model, probes).per_pair)


def test_bf16_keeps_the_ranking() -> None:
    probes = random_pairs(n=8)
    expected = score_heads(tiny_model("qwen2"), probes).mean().flatten()
    found = score_heads(tiny_model("qwen2", torch.bfloat16), probes).mean().flatten()
    assert found.dtype == torch.float32
    assert torch.corrcoef(torch.stack([expected.float(), found]))[0, 1] > 0.98
