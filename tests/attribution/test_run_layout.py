"""Runs packed along the sequence after one prefix: the same scores as runs stacked along the batch."""

from typing import Any

import pytest
import torch
from helpers.tiny_models import largest_error, random_openers, random_pairs, tiny_model, with_attention

from headwatch import Anatomy, score_edges, score_heads
from headwatch.attribution import ScoringSettings, batch_pass
from headwatch.attribution.naive import naive_edges
from headwatch.attribution.run_layout import MaskRecorder, RunLayout, packed_mask, should_pack
from headwatch.attribution.scoring import score_pairs
from headwatch.model.hooks import hooked


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[RunLayout]:
    """The layout of every batch's points."""
    found: list[RunLayout] = []
    layout_of = batch_pass.BatchPass._layout_of

    def watched(self: Any, runs: int) -> RunLayout:
        found.append(layout_of(self, runs))
        return found[-1]

    monkeypatch.setattr(batch_pass.BatchPass, "_layout_of", watched)
    return found


def pack_all(monkeypatch: pytest.MonkeyPatch, how: bool) -> None:
    monkeypatch.setattr(batch_pass, "should_pack", lambda prefix, length, runs: how)


@pytest.mark.parametrize(("architecture", "attention"), with_attention())
def test_packed_and_stacked_in_every_architecture(
    architecture: str, attention: str, layouts: list[RunLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 4 tokens reach into the prefix and over the differing tokens, not into other runs.

    Without prefix reuse nothing is packed; test_exactness.py compares that with the naive reference.
    """
    model, probes = tiny_model(architecture, attention=attention), random_openers()
    expected = score_pairs(model, probes, ScoringSettings(steps=3), reuse_prefix=False)
    for how in (True, False):
        pack_all(monkeypatch, how)
        layouts.clear()
        edges = score_edges(model, probes, steps=3)
        assert sum(a.packed for a in layouts) in (
            (3, 4) if how else (0,)
        )  # for a single token sdpa may receive no mask
        assert len(layouts) == 4  # pairs of four shapes
        assert largest_error(edges.per_pair, expected.per_pair) < 1e-9
        assert edges.checks.row_sums < 1e-9
        assert largest_error(score_heads(model, probes, steps=3).per_pair, edges.heads.per_pair) < 1e-9


@pytest.mark.parametrize("architecture", ["llama", "mistral-sliding", "gemma3", "gpt2", "olmo2", "qwen3-moe"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padded_pairs_of_several_lengths(
    architecture: str, attention: str, layouts: list[RunLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 1, because float32 itself has an error of 1.1e-5 to 1.3e-5 on seed 0's pairs in llama, packed or not."""
    pack_all(monkeypatch, True)
    probes = random_openers(5, seed=1)
    expected = naive_edges(tiny_model(architecture, attention=attention), probes, steps=2)
    found = score_edges(tiny_model(architecture, torch.float32, attention), probes, steps=2, batch_size=5)
    assert [(a.packed, a.pairs) for a in layouts] == [(True, 5)]
    assert largest_error(found.per_pair, expected) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_under_autocast_and_in_half_precision(
    attention: str, layouts: list[RunLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed runs are as exact as stacked ones; under eager attention masks have the model's own dtype."""
    probes, single = random_openers(8, seed=1), tiny_model("qwen2", torch.float32, attention)
    expected = score_edges(single, probes, steps=2).per_pair
    held = tiny_model("qwen2", torch.bfloat16, attention)
    for how in (True, False):
        pack_all(monkeypatch, how)
        with torch.autocast("cpu", torch.bfloat16):
            assert largest_error(score_edges(single, probes, steps=2).per_pair, expected) < 0.1
        assert largest_error(score_edges(held, probes, steps=2).per_pair, expected) < 0.2
    assert [a.packed for a in layouts[1:]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("metric", "alphas"),
    [
        ("logit_diff", "right"),
        ("logit_diff", "clean"),
        ("kl", "midpoint"),
        ("kl", "right"),
        ("nll", "left"),
        ("nll", "ends"),
    ],
)
@pytest.mark.parametrize("points", [5, 2, 1])
def test_endpoints_as_points_and_several_read_positions(
    metric: str, alphas: str, points: int, layouts: list[RunLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwatch.attribution.scoring.batch_sizes", lambda *arguments: (3, points))
    model, probes = tiny_model("qwen2"), random_openers(6, reads=2, prefix=22)
    edges = score_edges(model, probes, metric, 3, alphas)
    # A single run is not packed, nor are two endpoints that are both points: no run before them has recorded masks.
    assert any(a.packed for a in layouts) == (alphas not in ("clean", "ends") and points > 1)
    assert largest_error(edges.per_pair, naive_edges(model, probes, metric, 3, alphas)) < 1e-9


def test_long_prefixes_are_shared_and_short_ones_copied(layouts: list[RunLayout]) -> None:
    model = tiny_model("llama")
    score_heads(model, random_openers(prefix=14, suffix=3).select([0]), steps=5)
    score_heads(model, random_openers(prefix=12, suffix=3).select([0]), steps=5)
    score_pairs(
        model, random_openers(prefix=14, suffix=3).select([0]), ScoringSettings(edges=False), reuse_prefix=False
    )
    score_heads(model, random_pairs(1), steps=5)
    assert [a.packed for a in layouts] == [True, False, False, False]
    assert not should_pack(100, 10, 1)


def test_runs_without_an_explicit_mask_are_stacked(layouts: list[RunLayout]) -> None:
    """sdpa receives no mask for a single token, FlashAttention never."""
    probes = random_openers(prefix=14, suffix=1).select([0])
    for attention in ("sdpa", "eager"):
        model = tiny_model("llama", attention=attention)
        edges = score_edges(model, probes, steps=2)
        assert largest_error(edges.per_pair, naive_edges(model, probes, steps=2)) < 1e-9
    assert [a.packed for a in layouts] == [False, True]


@pytest.mark.parametrize(("architecture", "kinds"), [("llama", 1), ("gemma3", 2)])
def test_layers_that_share_a_mask_share_the_packed_one(
    architecture: str, kinds: int, layouts: list[RunLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.Tensor] = []
    monkeypatch.setattr(
        "headwatch.attribution.run_layout.packed_mask", lambda *a: made.append(packed_mask(*a)) or made[-1]
    )
    score_heads(tiny_model(architecture), random_openers(prefix=30).select([0]), steps=5)
    assert [a.packed for a in layouts] == [True]
    assert len(made) == kinds  # of three layers


def test_only_explicit_4d_masks_are_recorded() -> None:
    """FlashAttention receives only which tokens are padding, [B, C + T]."""
    model = tiny_model("llama")
    for mask, enough in ((torch.ones(2, 1, 3, 5), True), (torch.ones(2, 5), False), (None, False)):
        recorder = MaskRecorder(Anatomy.of(model), 1)
        with hooked(*recorder.hooks()):
            for layer in model.model.layers:
                (hook,) = layer.self_attn._forward_pre_hooks.values()
                hook(layer.self_attn, (), {"attention_mask": mask})
        masks = recorder.masks()
        assert (masks is not None) == enough
        assert masks is None or [m.shape for m in masks.values()] == [(1, 1, 3, 5)] * 3


def test_the_pass_leaves_no_hook_behind() -> None:
    model = tiny_model("llama")
    score_edges(model, random_openers(prefix=30))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not any(m._forward_pre_hooks_with_kwargs for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_for_several_runs(dtype: torch.dtype) -> None:
    visible = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]]).bool()  # two columns of prefix, two of each run
    mask = visible if dtype == torch.bool else torch.where(visible, 0.0, torch.finfo(dtype).min)
    (made,) = packed_mask(mask[None, None], 3)[0]
    expected = [
        [1, 0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 1, 1],
    ]
    assert made.dtype == dtype
    assert (made if dtype == torch.bool else made == 0).int().tolist() == expected


@pytest.mark.parametrize("side", [False, True])
def test_join_and_back(side: bool) -> None:
    layout = RunLayout(2, 3, {} if side else None)
    states = torch.arange(3 * 2 * 4 * 5).view(3, 2, 4, 5)  # [n, B, T, W]
    joined = layout.join(states)
    assert joined.shape == ((2, 12, 5) if side else (6, 4, 5))
    assert torch.equal(layout.by_run(joined), states)
    assert torch.equal(layout.by_token(joined), states.permute(1, 2, 0, 3).flatten(0, 1))
    assert torch.equal(layout.repeat(states[1]), layout.join(states[1].repeat(3, 1, 1, 1)))
    columns = layout.last_columns(2, 4, torch.device("cpu"))
    assert torch.equal(layout.by_run(joined[:, columns]), states[:, :, -2:])
