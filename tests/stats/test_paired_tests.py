"""Changes between two probes: paired and unpaired tests, intervals, and false discoveries over a run."""

from collections.abc import Callable

import numpy as np
import pytest
from helpers.random_probes import H, L, N, random_probe
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, ttest_1samp, ttest_ind

from headwatch import stats
from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.stats import Estimate, EvidenceSettings

Floats = NDArray[np.float64]


def sign_flip_p(differences: Floats, flips: int, rng: np.random.Generator) -> float:
    """Reference: how often random signs of the differences give a mean as far from zero as the observed one."""
    observed = abs(differences.mean())
    beaten = 0
    for _ in range(flips):
        signs = rng.choice([-1.0, 1.0], size=len(differences))
        beaten += abs((signs * differences).mean()) >= observed
    return (beaten + 1) / (flips + 1)


def test_p_values_agree_with_sign_flips() -> None:
    rng = np.random.default_rng(6)
    scores, clean, corrupted = random_probe(rng, heads=(1, 12))
    later = scores + 0.3 * rng.standard_normal(scores.shape) - 0.015 * np.arange(12)
    before, after = stats.shares(scores, clean, corrupted), stats.shares(later, clean, corrupted)
    change = stats.paired_change(before, after)
    for head in range(12):
        # The linearised change of each pair: its mean is the change of share.
        v = (after.influence - before.influence)[:, 0, head] + change.difference[0, head]
        p = sign_flip_p(v, 2000, rng)
        error = np.sqrt(p * (1 - p) / 2000)  # of the reference itself
        assert change.p_value[0, head] == pytest.approx(p, abs=4 * error + 0.01)
    assert change.p_value.min() < 0.01 < 0.2 < change.p_value.max()


def test_p_values_match_the_formula_written_pair_by_pair() -> None:
    rng = np.random.default_rng(7)
    s0, c0, d0 = random_probe(rng)
    s1, c1, d1 = (x + 0.2 * rng.standard_normal(x.shape) for x in (s0, c0, d0))
    change = stats.paired_change(stats.shares(s0, c0, d0), stats.shares(s1, c1, d1))
    g0, g1 = d0 - c0, d1 - c1
    for layer, head in ((0, 0), (3, 2), (5, 4)):
        a, b = s0[:, layer, head], s1[:, layer, head]
        share0, share1 = a.mean() / g0.mean(), b.mean() / g1.mean()
        v = [(b[i] - share1 * g1[i]) / g1.mean() - (a[i] - share0 * g0[i]) / g0.mean() for i in range(N)]
        expected = ttest_1samp(np.array(v) + share1 - share0, 0.0)
        assert change.p_value[layer, head] == pytest.approx(expected.pvalue)
        assert change.difference[layer, head] == pytest.approx(share1 - share0)


def test_identical_scores_have_p_of_exactly_one() -> None:
    scores, clean, corrupted = random_probe(np.random.default_rng(8))
    same = stats.shares(scores, clean, corrupted)
    change = stats.paired_change(same, stats.shares(scores.copy(), clean, corrupted))
    assert (change.p_value == 1.0).all()
    assert (change.q_value == 1.0).all()
    assert (change.difference == 0.0).all()


def test_scaling_the_whole_task_is_no_change_of_share() -> None:
    """Rounding leaves differences of 1e-17 with equally small errors: the float32 floor makes them insignificant."""
    scores, clean, corrupted = random_probe(np.random.default_rng(9))
    before = stats.shares(scores, clean, corrupted)
    after = stats.shares(0.61 * scores, 0.61 * clean, 0.61 * corrupted)
    assert stats.paired_change(before, after).p_value.min() > 0.9


def test_pairing_finds_changes_below_the_unpaired_error() -> None:
    rng = np.random.default_rng(10)
    scores, clean, corrupted = random_probe(rng)
    before = stats.shares(scores, clean, corrupted)
    later = scores + 0.01 * rng.standard_normal(scores.shape)
    later[:, 2, 3] += 0.2 * before.standard_error[2, 3] * (corrupted - clean).mean()
    after = stats.shares(later, clean, corrupted)
    change = stats.paired_change(before, after)
    found = change.q_value <= 0.01
    assert found[2, 3]
    assert found.sum() == 1
    assert abs(change.difference[2, 3]) < 0.3 * after.standard_error[2, 3]


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, shape),
    "one pair in ten": lambda rng, shape: 3.0 * rng.standard_normal(shape) * (rng.random(shape) < 0.1),
}


def two_probes(
    rng: np.random.Generator, noise: str, n_pairs: int, moved: int
) -> tuple[stats.Change, NDArray[np.bool_]]:
    """A change over 120 heads, the first `moved` of which really gained share; the gap shrinks to 0.7 of itself."""
    share = 0.02 * rng.standard_normal((10, 12))
    truth = np.zeros((10, 12), np.bool_)
    truth.ravel()[:moved] = True
    taste = 0.05 * NOISES[noise](rng, (n_pairs, 10, 12))
    gap = -5.0 * np.exp(0.3 * rng.standard_normal(n_pairs))
    later_gap = 0.7 * gap * np.exp(0.1 * rng.standard_normal(n_pairs))
    scores = gap[:, None, None] * share + taste
    drift = 0.05 * NOISES[noise](rng, taste.shape)
    later = later_gap[:, None, None] * (share + 0.03 * truth) + 0.7 * taste + drift
    zero = np.zeros(n_pairs)
    return stats.paired_change(stats.shares(scores, zero, gap), stats.shares(later, zero, later_gap)), truth


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n_pairs", [16, 64])
def test_nothing_is_found_where_nothing_changed(noise: str, n_pairs: int) -> None:
    """Without a true change the false-discovery rate, at most 0.01, is the probability of any discovery."""
    rng = np.random.default_rng([11, n_pairs])
    runs = 150
    false = sum((two_probes(rng, noise, n_pairs, 0)[0].q_value <= 0.01).any() for _ in range(runs))
    assert false <= 6  # P(more than 6 | 150 runs at 0.01) = 0.0007


@pytest.mark.parametrize("noise", NOISES)
def test_planted_changes_are_found_and_few_others(noise: str) -> None:
    rng = np.random.default_rng(12)
    power, false_share = [], []
    for _ in range(60):
        change, truth = two_probes(rng, noise, 64, 12)
        found = change.q_value <= 0.05
        power.append(found[truth].mean())
        false_share.append(found[~truth].sum() / max(found.sum(), 1))
    assert np.mean(power) > 0.9
    assert np.mean(false_share) < 0.05 + 0.02


def test_an_unpaired_change_is_welchs_test() -> None:
    rng = np.random.default_rng(0)
    one, other = stats.shares(*random_probe(rng, 30)), stats.shares(*random_probe(rng, 50))
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


@pytest.mark.parametrize("test", ["t", "sign-flip"])
def test_with_random_signs_at_most_q_of_runs_have_a_discovery(test: str) -> None:
    """Realistic differences (heavy tails, correlated over heads and probes) with a random sign per pair."""
    rng = np.random.default_rng(6)
    n_pairs, heads, runs = 32, (8, 10), 150
    base = Estimate(0.1 * rng.standard_normal(heads), 0.1 * rng.standard_normal((n_pairs, *heads)), np.zeros(heads))
    common = rng.standard_t(3, (n_pairs, 1, 1))
    drift = np.cumsum(0.05 * rng.standard_t(3, (6, n_pairs, *heads)) + 0.03 * common, axis=0) + 0.02
    settings = EvidenceSettings(q=0.05, test=test, confirm="level")
    false = 0
    for _ in range(runs):
        signs = rng.choice([-1.0, 1.0], (n_pairs, 1, 1))
        seen = False
        for k, v in enumerate(signs * drift, start=1):
            after = Estimate(base.value + v.mean(axis=0), base.influence + v - v.mean(axis=0), base.resolution)
            seen |= bool((stats.change(base, after, settings).q_value <= settings.levels(k)[0]).any())
        false += seen
    assert false <= 17  # P(more than 17 | 150 runs at 0.05) = 0.0005


def test_fresh_pairs_at_every_probe_give_few_events() -> None:
    """One model, other pairs each time, tested unpaired: under 1 % of heads per probe have an event."""
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
    assert crossings > 0.05 * 6 * 5 * 80  # membership alone changes far more often


def moved(values: Floats) -> tuple[Estimate, Estimate]:
    """Two probes between which the pairs of heads [N, K] move by `values`."""
    v = values[:, None, :]
    nothing = Estimate(np.zeros(v.shape[1:]), np.zeros(v.shape), np.zeros(v.shape[1:]))
    return nothing, Estimate(v.mean(axis=0), v - v.mean(axis=0), np.zeros(v.shape[1:]))


def test_benjamini_hochberg_is_the_step_up_rule() -> None:
    rng = np.random.default_rng(13)
    for _ in range(50):
        p = rng.random((4, 5)) ** 3
        adjusted = stats.benjamini_hochberg(p)
        for q in (0.01, 0.1, 0.3):
            ordered = np.sort(p.ravel())
            passing = [k for k in range(1, 21) if ordered[k - 1] <= q * k / 20]
            threshold = ordered[max(passing) - 1] if passing else -1.0
            np.testing.assert_array_equal(adjusted <= q, p <= threshold)
        assert (adjusted >= p * (1 - 1e-12)).all()


def test_benjamini_hochberg_is_scipys() -> None:
    rng = np.random.default_rng(14)
    for _ in range(50):
        p, weights = rng.random(30) ** 3, rng.exponential(size=30)
        weighted = np.minimum(p / weights * weights.mean(), 1.0)
        np.testing.assert_allclose(stats.benjamini_hochberg(p), false_discovery_control(p), rtol=1e-12)
        np.testing.assert_allclose(stats.benjamini_hochberg(p, weights), false_discovery_control(weighted), rtol=1e-12)


def weighted_step_up(p: Floats, weights: Floats, q: float) -> NDArray[np.bool_]:
    """Weighted Benjamini-Hochberg by definition: the largest k with k of them at p <= w q k / K, w of mean 1."""
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
    """Ten heads change, and the pairs of twenty others move a fiftieth of that: little of q goes to those."""
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


def test_weights_by_size_keep_the_level() -> None:
    """Without a true change any discovery has probability q; with weights by the difference itself it has more."""
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


def test_a_paired_change_refuses_other_pairs() -> None:
    scores, clean, corrupted = random_probe(np.random.default_rng(23))
    fewer = stats.shares(scores[1:], clean[1:], corrupted[1:])
    with pytest.raises(UserError, match="same pairs"):
        stats.paired_change(stats.shares(scores, clean, corrupted), fewer)
