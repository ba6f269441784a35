"""Shares, their errors, signal and the active set, against references that can be checked by eye."""

import numpy as np
import pytest
from helpers.random_probes import H, L, N, random_probe
from numpy.typing import NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.stats import EvidenceSettings

Floats = NDArray[np.float64]


def resampled_shares(scores: Floats, clean: Floats, corrupted: Floats, resamples: int, seed: int) -> Floats:
    """Shares of bootstrap samples of the pairs, row by row, [resamples, L, H]."""
    rng, n = np.random.default_rng(seed), len(scores)
    samples = (rng.integers(n, size=n) for _ in range(resamples))
    return np.array([scores[rows].mean(axis=0) / (corrupted - clean)[rows].mean() for rows in samples])


def test_shares_are_ratios_of_means_whatever_the_units() -> None:
    scores, clean, corrupted = random_probe(np.random.default_rng(0))
    found = stats.shares(scores, clean, corrupted)
    for layer, head in np.ndindex(L, H):
        assert found.value[layer, head] == pytest.approx(np.mean(scores[:, layer, head]) / np.mean(corrupted - clean))
    scaled = stats.shares(-7.0 * scores, -7.0 * clean, -7.0 * corrupted)
    np.testing.assert_allclose(scaled.value, found.value)
    np.testing.assert_allclose(scaled.standard_error, found.standard_error)
    np.testing.assert_allclose(found.influence.mean(axis=0), 0.0, atol=1e-14)


def test_shares_sum_to_one_when_the_scores_are_complete() -> None:
    rng = np.random.default_rng(1)
    parts = rng.dirichlet(np.ones(L * H), size=N).reshape(N, L, H)
    clean, corrupted = rng.normal(3, 1, N), rng.normal(-3, 1, N)
    found = stats.shares(parts * (corrupted - clean)[:, None, None], clean, corrupted)
    assert found.value.sum() == pytest.approx(1.0)


def test_delta_method_error_agrees_with_the_bootstrap_and_the_jackknife() -> None:
    scores, clean, corrupted = random_probe(np.random.default_rng(2), n_pairs=200)
    found = stats.shares(scores, clean, corrupted)
    resampled = resampled_shares(scores, clean, corrupted, resamples=2000, seed=3)
    np.testing.assert_allclose(found.standard_error, resampled.std(axis=0), rtol=0.12)
    left_out = np.array(
        [stats.shares(np.delete(scores, i, 0), np.delete(clean, i), np.delete(corrupted, i)).value for i in range(200)]
    )
    jackknife = np.sqrt(199 / 200 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(found.standard_error, jackknife, rtol=0.02)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(5), []
    share = 0.1 * rng.standard_normal((L, H))
    for _ in range(150):
        gap = -4.0 * np.exp(0.4 * rng.standard_normal(32))
        scores = gap[:, None, None] * share + 0.3 * rng.standard_t(5, (32, L, H))
        low, high = stats.interval(stats.shares(scores, np.zeros(32), gap))
        covered.append((low <= share) & (share <= high))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_importance_has_the_error_of_the_bootstrap() -> None:
    rng = np.random.default_rng(2)
    share = np.where(np.arange(L * H).reshape(L, H) % 2, 0.1, -0.05) * (1 + rng.random((L, H)))
    arrays = random_probe(rng, 200, share=share)
    estimate = stats.share_importance(stats.shares(*arrays))
    np.testing.assert_allclose(estimate.value.sum(), 1.0)
    sizes = np.abs(resampled_shares(*arrays, resamples=2000, seed=3))
    sizes /= sizes.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(estimate.standard_error, sizes.std(axis=0), rtol=0.12)
    np.testing.assert_allclose(estimate.influence.mean(axis=0), 0.0, atol=1e-14)


def test_importance_without_any_share_is_zero() -> None:
    none = stats.share_importance(stats.shares(np.zeros((8, L, H)), np.zeros(8), np.ones(8)))
    assert (none.value == 0.0).all()
    assert (none.influence == 0.0).all()


# --- the active set ---------------------------------------------------------------------------------------------------


def test_the_carrying_set_is_the_smallest() -> None:
    rng = np.random.default_rng(14)
    for part in (0.3, 0.8, 0.85, 1.0):
        share = rng.standard_normal((L, H)) ** 3
        chosen = stats.carrying_set(share, part)
        size = np.sort(np.abs(share).ravel())[::-1]
        smallest = next(k for k in range(1, size.size + 1) if size[:k].sum() >= part * size.sum() * (1 - 1e-9))
        assert chosen.sum() == smallest
        assert np.abs(share)[chosen].min() >= np.abs(share)[~chosen].max(initial=0.0)


def test_many_carrying_sets_at_once_are_one_after_the_other() -> None:
    share = np.random.default_rng(24).standard_normal((2, 7, L, H))
    together = stats.carrying_set(share, 0.8)
    for index in np.ndindex(2, 7):
        np.testing.assert_array_equal(together[index], stats.carrying_set(share[index], 0.8))


def test_the_carrying_set_of_equal_and_of_no_heads() -> None:
    assert stats.carrying_set(np.full((2, 5), -0.1), 0.8).sum() == 8
    assert not stats.carrying_set(np.zeros((2, 5)), 0.8).any()
    assert stats.carrying_set(np.eye(3), 1.0).sum() == 3


def test_hysteresis_holds_heads_between_the_two_edges() -> None:
    share = np.array([[0.5, 0.3, 0.04, 0.16]])  # in order 0.50, 0.80, 0.96, 1.00
    assert stats.membership(share, None, EvidenceSettings()).tolist() == [[True, True, False, False]]
    within = np.array([[0.50, 0.26, 0.08, 0.16]])  # 0.50, 0.76, 0.92 | 1.00: the last is outside both
    held = stats.membership(within, np.array([[True, True, True, True]]), EvidenceSettings())
    assert held.tolist() == [[True, True, False, True]]
    band = np.array([[0.50, 0.32, 0.10, 0.08]])  # 0.50, 0.82 | 0.92: 0.10 is inside 0.90 only
    for before in (True, False):
        found = stats.membership(band, np.array([[True, True, before, False]]), EvidenceSettings())
        assert found.tolist() == [[True, True, before, False]]


def test_hysteresis_lets_fewer_heads_flicker() -> None:
    rng = np.random.default_rng(15)
    truth = np.exp(-np.arange(200) / 25.0).reshape(10, 20)

    def crossings(settings: EvidenceSettings) -> int:
        member, total = None, 0
        for _ in range(40):
            now = stats.membership(truth + 0.01 * noise[_], member, settings)
            total += 0 if member is None else int((now ^ member).sum())
            member = now
        return total

    noise = rng.standard_normal((40, 10, 20))
    assert crossings(EvidenceSettings()) < 0.6 * crossings(EvidenceSettings(keep=0.8))


# --- signal -----------------------------------------------------------------------------------------------------------


def test_signal_needs_pairs_a_gap_and_finite_numbers() -> None:
    rng = np.random.default_rng(16)
    scores, clean, corrupted = random_probe(rng)
    settings = EvidenceSettings()
    assert stats.signal(scores, clean, corrupted, settings) == "ok"
    assert stats.signal(scores[:7], clean[:7], corrupted[:7], settings) == "insufficient signal"
    assert stats.signal(scores, clean, rng.permutation(clean), settings) == "insufficient signal"
    assert stats.signal(scores, clean, clean, settings) == "insufficient signal"
    for bad in (np.nan, np.inf):
        broken = scores.copy()
        broken[3, 2, 1] = bad
        assert stats.signal(broken, clean, corrupted, settings) == "insufficient signal"
        assert stats.signal(scores, np.where(np.arange(N) == 3, bad, clean), corrupted, settings) != "ok"


def test_a_gap_of_zero_seldom_passes_for_signal() -> None:
    rng = np.random.default_rng(17)
    scores = rng.standard_normal((32, 1, 1))
    zero = np.zeros(32)
    passed = [stats.signal(scores, zero, rng.standard_t(3, 32), EvidenceSettings()) == "ok" for _ in range(1000)]
    assert sum(passed) <= 3


def test_shares_name_bad_shapes_and_a_gap_of_zero() -> None:
    scores, clean, corrupted = random_probe(np.random.default_rng(23))
    with pytest.raises(UserError, match=r"\(40, 6, 5\).*\(39,\)"):
        stats.shares(scores, clean[:-1], corrupted)
    with pytest.raises(UserError, match="signal"):
        stats.shares(scores, clean, clean)
