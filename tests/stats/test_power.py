"""Heads whose loss is detectable on these pairs, against losses that happen."""

import numpy as np
import pytest
import scipy.stats

from headwatch import HeadHistory
from headwatch.report.sentences import summary
from headwatch.stats import EvidenceSettings, change, detectable, nonzero_share, pairs_needed, shares

LAYERS, HEADS, PAIRS = 8, 8, 64
GAP = np.full(PAIRS, 200.0)


def drawn(rng: np.random.Generator, t: float, n_pairs: int = PAIRS) -> np.ndarray:
    """Scores of heads whose mean is some `t` standard errors of PAIRS pairs away from 0, [N, L, H]."""
    return 1.0 + rng.standard_t(5, size=(n_pairs, LAYERS, HEADS)) * np.sqrt(PAIRS) / t


@pytest.mark.parametrize("test", ["sign-flip", "t", "welch"])
def test_a_loss_is_detected_exactly_where_it_was_detectable(test: str) -> None:
    """One head at a time is removed, nothing else changes: q <= 0.01 exactly where it was detectable at the base."""
    settings = EvidenceSettings(test=test, min_change=0.001, weights="equal")
    scores = drawn(np.random.default_rng(0), 4.5)
    expected = detectable(shares(scores, 0 * GAP, GAP), settings)
    found = np.zeros_like(expected)
    for at in np.ndindex(LAYERS, HEADS):
        history = HeadHistory(LAYERS, HEADS, settings=settings)
        history.add(0, scores, 0 * GAP, GAP)
        assert (history.detectable[0] == expected).all()
        after = scores.copy()
        after[:, at[0], at[1]] = 0.0
        history.add(1, after, 0 * GAP, GAP)
        found[at] = history.weakened[1][at]
    assert 10 < found.sum() < 54
    assert (found == expected).all()


def test_weighted_by_size_every_detectable_loss_is_detected() -> None:
    """All others move too, half as far: the removed head has more weight than average, so others may be found too."""
    settings, rng = EvidenceSettings(min_change=0.001), np.random.default_rng(7)
    scores = drawn(rng, 4.5)
    expected = detectable(shares(scores, 0 * GAP, GAP), settings)
    found = np.zeros_like(expected)
    for at in np.ndindex(LAYERS, HEADS):
        history = HeadHistory(LAYERS, HEADS, settings=settings)
        history.add(0, scores, 0 * GAP, GAP)
        after = scores + 0.5 * np.abs(scores).mean() * rng.choice([-1.0, 1.0], scores.shape)
        after[:, at[0], at[1]] = 0.0
        history.add(1, after, 0 * GAP, GAP)
        found[at] = history.weakened[1][at]
    assert 10 < expected.sum() < found.sum()
    assert (found >= expected).all()


def test_pairs_needed_detect_nine_in_ten() -> None:
    """With the number of pairs asked for, drawn anew from the same distribution."""
    rng, settings = np.random.default_rng(1), EvidenceSettings()
    every = np.ones((LAYERS, HEADS), np.bool_)
    few = shares(drawn(rng, 4.0), 0 * GAP, GAP)
    wanted = pairs_needed(few, every, settings)
    assert detectable(few, settings).mean() < 0.6
    assert wanted is not None
    assert PAIRS < wanted < 10 * PAIRS
    weakest = np.sort(few.value / few.standard_error, axis=None)[LAYERS * HEADS - 58]  # of the 58 strongest of 64
    needed = scipy.stats.norm.isf(0.01 / 64 / 2) + scipy.stats.norm.isf(0.05)
    assert np.sqrt(wanted / PAIRS) * weakest == pytest.approx(needed, rel=0.01)
    many = shares(drawn(rng, 4.0, wanted), np.zeros(wanted), np.full(wanted, GAP[0]))
    assert detectable(many, settings).mean() > 0.9


def test_with_few_pairs_or_small_shares_nothing_is_detectable() -> None:
    """Eight signs give no p below 1 in 128, and 64 heads need 1 in 6,400."""
    rng = np.random.default_rng(2)
    clear = drawn(rng, 400.0)
    assert detectable(shares(clear, 0 * GAP, GAP), EvidenceSettings()).all()
    assert not detectable(shares(clear[:8], 0 * GAP[:8], GAP[:8]), EvidenceSettings()).any()
    assert not detectable(shares(clear, 0 * GAP, GAP), EvidenceSettings(), threshold=0.1).any()
    clear[:, 0, 0] = 0.0
    nothing = shares(clear, 0 * GAP, GAP)
    assert not detectable(nothing, EvidenceSettings())[0, 0]
    only = np.zeros((LAYERS, HEADS), np.bool_)
    assert pairs_needed(nothing, only, EvidenceSettings()) is None
    only[0, 0] = True
    assert pairs_needed(nothing, only, EvidenceSettings()) is None


@pytest.mark.parametrize("required", [True, False])
def test_a_head_without_a_nonzero_share_neither_leaves_nor_joins(required: bool) -> None:
    """Head 1.0 has a large share with t = 3, not significant where few heads are; its change is, where many change."""
    rng = np.random.default_rng(4)
    base = 1e-3 * rng.normal(size=(PAIRS, LAYERS, HEADS))
    base[:, 0, :4] = 1.0 + 0.1 * rng.normal(size=(PAIRS, 4))
    noise = rng.normal(size=PAIRS)
    base[:, 1, 0] = 1.0 + np.sqrt(PAIRS) / 3.0 * (noise - noise.mean()) / noise.std()
    now = base + 1e-3  # all others change a little, and surely
    now[:, 1, 0] = 0.0
    settings = EvidenceSettings(require_nonzero_share=required, carry=0.9, confirm="none", weights="equal")
    for before, after, kind in ((base, now, "dropped"), (now, base, "emerged")):
        history = HeadHistory(LAYERS, HEADS, settings=settings)
        history.add(0, before, 0 * GAP, GAP)
        history.add(1, after, 0 * GAP, GAP)
        assert history.member[0, 1, 0] != history.member[1, 1, 0]
        assert 0.001 < history.q_value[1, 1, 0] < 0.01
        found = [e.kind for e in history.events if (e.layer, e.head) == (1, 0)]
        assert found == ([] if required else [kind])


def test_more_heads_have_a_nonzero_share_than_are_detectable() -> None:
    """Benjamini-Hochberg where many shares are non-zero: with 48 of 64 smaller p values, p = 0.002 has q below 0.01."""
    rng = np.random.default_rng(5)
    scores = 1.0 + 0.1 * rng.normal(size=(PAIRS, LAYERS, HEADS))
    scores[:, 6:] = rng.normal(size=(PAIRS, 2, HEADS))
    noise = rng.normal(size=PAIRS)
    scores[:, 6, 0] = 1.0 + np.sqrt(PAIRS) / 3.3 * (noise - noise.mean()) / noise.std()
    now = shares(scores, 0 * GAP, GAP)
    assert nonzero_share(now, EvidenceSettings())[6, 0]
    assert not detectable(now, EvidenceSettings())[6, 0]
    assert (nonzero_share(now, EvidenceSettings()) >= detectable(now, EvidenceSettings())).all()


def test_size_alone_does_not_make_a_share_nonzero() -> None:
    """A share thirty times the others' with t = 3: weighted by size it would be significant."""
    rng = np.random.default_rng(8)
    scores = 0.03 * rng.normal(size=(PAIRS, LAYERS, HEADS))
    noise = rng.normal(size=PAIRS)
    scores[:, 0, 0] = 1.0 + np.sqrt(PAIRS) / 3.0 * (noise - noise.mean()) / noise.std()
    now = shares(scores, 0 * GAP, GAP)
    gone = shares(np.zeros_like(scores), 0 * GAP, GAP)
    assert change(now, gone, EvidenceSettings()).q_value[0, 0] < 0.01
    assert not nonzero_share(now, EvidenceSettings())[0, 0]


def test_a_head_confirmed_by_the_next_probe_can_leave_again() -> None:
    """Its share is non-zero at the probe that found it first, its mark; at the base it was not."""
    rng = np.random.default_rng(6)
    off = 1e-3 * rng.normal(size=(PAIRS, LAYERS, HEADS))
    off[:, 0, :4] = 1.0 + 0.1 * rng.normal(size=(PAIRS, 4))
    on = off.copy()
    on[:, 1, 0] = 1.0 + 0.1 * rng.normal(size=PAIRS)
    history = HeadHistory(LAYERS, HEADS, settings=EvidenceSettings(confirm="next", carry=0.9))
    for step, scores in enumerate((off, on, on, off, off)):
        history.add(step, scores, 0 * GAP, GAP)
    assert [(e.step, e.kind) for e in history.events if (e.layer, e.head) == (1, 0)] == [(1, "emerged"), (3, "pruned")]


def test_a_history_counts_them_and_the_summary_says_so() -> None:
    rng = np.random.default_rng(3)
    history = HeadHistory(LAYERS, HEADS, family="sums", settings=EvidenceSettings(carry=0.97, keep=0.98))
    scores = 1e-4 * drawn(rng, 1.0)
    scores[:, 0, :4] = 1.0 + 0.1 * rng.normal(size=(PAIRS, 4))
    noise = rng.normal(size=(PAIRS, 2))
    scores[:, 1, :2] = 1.0 + 3.0 * (noise - noise.mean(axis=0))  # t = 2.7
    for step in (0, 10):
        history.add(step, scores, 0 * GAP, GAP)
    active = history.active[0]
    assert active[0, :4].all()
    assert active[1, :2].all()
    assert history.n_detectable() == [4, 4]
    assert history.latest_scalars()["detectable"] == 4
    wanted = history.pairs_needed()
    assert wanted is not None
    assert wanted > PAIRS
    (said,) = [s for s in summary(history)["sentences"] if "Detection power" in s]
    assert said == (
        f"Detection power: the loss of 4 of the {active.sum()} active heads would be detected (64 pairs; {wanted:,} "
        "would cover nine in ten)."
    )


def test_probes_without_signal_and_the_circuit_rule_have_a_row_too() -> None:
    history = HeadHistory(2, 2)
    history.add(0, np.ones((64, 2, 2)), np.zeros(64), np.zeros(64))  # no gap, no signal
    assert not history.detectable.any()
    assert history.n_detectable() == [0]
    assert history.pairs_needed() is None
    by_circuit = HeadHistory(2, 2, rule="circuit")
    by_circuit.add_membership(0, np.ones((2, 2), np.bool_), np.ones((2, 2)))
    assert by_circuit.detectable.shape == (1, 2, 2)
    assert "detectable" not in by_circuit.latest_scalars()
