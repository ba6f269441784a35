"""Changes between two probes: the unpaired test, intervals, importance, and what the levels promise over a run."""

import numpy as np
import pytest
from numpy.typing import NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.stats import Estimate, EvidenceSettings, Shares
from headwatch.stats.importance import effect
from headwatch.stats.settings import CONFIRMATIONS

Floats = NDArray[np.float64]
L, H = 6, 5


def probe(rng: np.random.Generator, n_pairs: int, share: Floats | None = None) -> tuple[Floats, Floats, Floats]:
    clean, corrupted = 3.0 + rng.standard_normal(n_pairs), -3.0 + rng.standard_normal(n_pairs)
    share = 0.1 * rng.standard_normal((L, H)) if share is None else share
    scores = (corrupted - clean)[:, None, None] * (share + 0.05 * rng.standard_normal((n_pairs, L, H)))
    return scores, clean, corrupted


def test_different_pairs_are_compared_by_welchs_test() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    one, other = stats.shares(*probe(rng, 30)), stats.shares(*probe(rng, 50))
    found = stats.unpaired_change(one, other)
    for at in np.ndindex(L, H):
        a, b = one.influence[:, *at] + one.value[at], other.influence[:, *at] + other.value[at]
        expected = ttest_ind(b, a, equal_var=False)
        assert found.p_value[at] == pytest.approx(expected.pvalue)
        assert found.freedom[at] == pytest.approx(expected.df)
        interval = expected.confidence_interval(0.95)
        assert [found.interval()[0][at], found.interval()[1][at]] == pytest.approx([interval.low, interval.high])
    with pytest.raises(UserError, match="30 before, 50 after"):
        stats.paired_change(one, other)


@pytest.mark.parametrize("test", ["t", "sign-flip"])
def test_intervals_cover_the_true_change(test: str) -> None:
    rng, covered = np.random.default_rng(1), []
    share, gain = 0.1 * rng.standard_normal((L, H)), 0.05 * rng.standard_normal((L, H))
    for _ in range(100):
        gap = -4.0 * np.exp(0.3 * rng.standard_normal(32))
        taste = 0.3 * rng.standard_normal((32, L, H))
        before, after = (
            stats.shares(gap[:, None, None] * s + taste + 0.1 * rng.standard_t(5, taste.shape), 0 * gap, gap)
            for s in (share, share + gain)
        )
        low, high = stats.paired_change(before, after, test).interval()
        covered.append((low <= gain) & (gain <= high))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_importance_and_its_error_are_those_of_the_bootstrap() -> None:
    rng = np.random.default_rng(2)
    share = np.where(np.arange(L * H).reshape(L, H) % 2, 0.1, -0.05) * (1 + rng.random((L, H)))
    before, after = (probe(rng, 200, s) for s in (share, share * (1 + 0.3 * rng.random((L, H)))))
    estimate = stats.importance(stats.shares(*before))
    np.testing.assert_allclose(estimate.value.sum(), 1.0)
    sizes = np.abs(stats.bootstrap_shares(*before, resamples=2000, seed=3))
    sizes /= sizes.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(estimate.standard_error, sizes.std(axis=0), rtol=0.12)
    np.testing.assert_allclose(estimate.influence.mean(axis=0), 0.0, atol=1e-14)
    # The effect takes the same pairs of both probes.
    effects = stats.bootstrap_effect(before, after, resamples=4, seed=5)
    rows = np.repeat(np.arange(200), np.random.default_rng(5).multinomial(200, np.full(200, 1 / 200), size=4)[2])
    pre, post = (stats.importance(stats.shares(*(a[rows] for a in x))).value for x in (before, after))
    np.testing.assert_allclose(effects[2], effect(post, pre))


def test_nothing_carries_nothing() -> None:
    none = stats.importance(stats.shares(np.zeros((8, L, H)), np.zeros(8), np.ones(8)))
    assert (none.value == 0.0).all()
    assert (none.influence == 0.0).all()


def test_levels_over_all_probes_sum_to_q() -> None:
    for confirm in ("level", "either"):
        settings = EvidenceSettings(confirm=confirm)
        spent = [settings.levels(k)[0] for k in range(1, 5001)]
        assert spent == sorted(spent, reverse=True)
        assert 0.99 * settings.q < sum(spent) < settings.q
    at_the_ninth = {confirm: EvidenceSettings(confirm=confirm).levels(9) for confirm in CONFIRMATIONS}
    strict = pytest.approx(0.01 / 90)
    assert at_the_ninth == {"either": (strict, 0.01), "level": (strict, 0), "next": (0, 0.01), "none": (0.01, 0)}
    with pytest.raises(UserError, match=r"confirm='twice'.*'level'"):
        EvidenceSettings(confirm="twice")
    with pytest.raises(UserError, match=r"test='z'.*'sign-flip'"):
        EvidenceSettings(test="z")


@pytest.mark.parametrize("test", ["t", "sign-flip"])
def test_under_permuted_signs_a_whole_run_has_a_discovery_in_at_most_q_of_runs(test: str) -> None:
    """Real-looking differences (heavy tails, correlated over heads and probes) with a random sign for each pair."""
    rng = np.random.default_rng(6)
    n_pairs, heads, runs = 32, (8, 10), 150
    base = Shares(0.1 * rng.standard_normal(heads), 0.1 * rng.standard_normal((n_pairs, *heads)), np.zeros(heads))
    common = rng.standard_t(3, (n_pairs, 1, 1))
    drift = np.cumsum(0.05 * rng.standard_t(3, (6, n_pairs, *heads)) + 0.03 * common, axis=0) + 0.02
    settings = EvidenceSettings(q=0.05, test=test, confirm="level")
    false = 0
    for _ in range(runs):
        signs = rng.choice([-1.0, 1.0], (n_pairs, 1, 1))
        seen = False
        for k, v in enumerate(signs * drift, start=1):
            after = Shares(base.value + v.mean(axis=0), base.influence + v - v.mean(axis=0), base.resolution)
            seen |= bool((stats.change(base, after, settings).q_value <= settings.levels(k)[0]).any())
        false += seen
    assert false <= 17  # P(more than 17 | 150 runs at 0.05) = 0.0005


def test_fresh_pairs_at_every_probe_make_no_life() -> None:
    """One model, other pairs each time: compared unpaired, under 1 % of head-probes have an event."""
    from headwatch.lives.history import HeadHistory

    rng, events, crossings = np.random.default_rng(8), 0, 0
    share = np.exp(-np.arange(80) / 10.0).reshape(8, 10) * rng.choice([-0.05, 0.1], (8, 10))
    for _ in range(6):
        history = HeadHistory(8, 10, settings=EvidenceSettings(test="welch"))
        for step in range(6):
            gap = -5.0 * np.exp(0.3 * rng.standard_normal(32))
            history.add(step, gap[:, None, None] * (share + 0.05 * rng.standard_t(3, (32, 8, 10))), 0 * gap, gap)
        events += len(history.events)
        crossings += int((history.member[1:] ^ history.member[0]).sum())
    assert events <= 0.01 * 6 * 5 * 80
    assert crossings > 0.05 * 6 * 5 * 80  # and by membership there would have been plenty


def moved(values: Floats) -> tuple[Estimate, Estimate]:
    """Two probes between which the pairs of heads [N, K] move by `values`."""
    v = values[:, None, :]
    nothing = Estimate(np.zeros(v.shape[1:]), np.zeros(v.shape), np.zeros(v.shape[1:]))
    return nothing, Estimate(v.mean(axis=0), v - v.mean(axis=0), np.zeros(v.shape[1:]))


def weighted_step_up(p: Floats, weights: Floats, q: float) -> NDArray[np.bool_]:
    """Weighted Benjamini-Hochberg as it is written: the most k with k of them at p <= w q k / K, w of mean 1."""
    w = weights / weights.mean()
    k = max(k for k in range(len(p) + 1) if k == 0 or (p <= w * q * k / len(p)).sum() >= k)
    rejected: NDArray[np.bool_] = p <= w * q * k / len(p)
    return rejected & (k > 0)


def test_weighted_benjamini_hochberg_is_the_step_up_rule() -> None:
    rng = np.random.default_rng(22)
    rejected = 0
    for _ in range(60):
        p = rng.random(24) ** 4
        weights = rng.exponential(size=24) * (rng.random(24) < 0.8)
        adjusted = stats.benjamini_hochberg(p, weights)
        for q in (0.01, 0.1, 0.3):
            expected = weighted_step_up(p, weights, q)
            np.testing.assert_array_equal(adjusted <= q, expected)
            rejected += expected.sum()
        assert (adjusted[weights == 0.0] == 1.0).all()
        np.testing.assert_allclose(adjusted, stats.benjamini_hochberg(p, 7.0 * weights), rtol=1e-12)
        shape = (4, 6)
        np.testing.assert_array_equal(
            adjusted.reshape(shape), stats.benjamini_hochberg(p.reshape(shape), weights.reshape(shape))
        )
    assert rejected > 500
    for equal in (np.full(24, 0.2), np.zeros(24)):
        np.testing.assert_allclose(stats.benjamini_hochberg(p, equal), stats.benjamini_hochberg(p), rtol=1e-12)


def test_q_goes_to_the_heads_whose_pairs_moved_farthest() -> None:
    """Ten heads change, and the pairs of twenty others move a fiftieth of that: no need to answer for those."""
    rng = np.random.default_rng(20)
    values = rng.standard_normal((20, 30))
    values[:, :10] += 0.9
    values[:, 10:] *= 0.02
    by_size, equal = (stats.paired_change(*moved(values), "sign-flip", weights) for weights in ("size", "equal"))
    np.testing.assert_array_equal(by_size.p_value, equal.p_value)
    weights = np.abs(values).mean(axis=0)[None]
    np.testing.assert_allclose(by_size.q_value, stats.benjamini_hochberg(equal.p_value, weights), rtol=1e-12)
    assert (by_size.q_value[:, :10] < 0.6 * equal.q_value[:, :10]).all()
    assert (by_size.q_value[:, 10:] >= equal.q_value[:, 10:]).all()
    by_t = [stats.paired_change(*moved(values), "t", weights).q_value for weights in ("size", "equal")]
    np.testing.assert_array_equal(*by_t)


def test_weighing_heads_by_the_size_of_their_pairs_is_no_peeking() -> None:
    """Nothing is true: any discovery stays at q. With weights by the difference itself it would not."""
    rng, q, runs = np.random.default_rng(21), 0.1, 600
    any_found, by_difference = [], []
    for _ in range(runs):
        values = rng.standard_t(3, (16, 36)) * np.exp(rng.standard_normal(36))
        found = stats.paired_change(*moved(values), "sign-flip", "size")
        any_found.append((found.q_value <= q).any())
        peeking = stats.benjamini_hochberg(found.p_value, np.abs(found.difference))
        by_difference.append((peeking <= q).any())
    assert np.mean(any_found) == pytest.approx(q, abs=4 * np.sqrt(q * (1 - q) / runs))
    assert np.mean(by_difference) > 0.2
