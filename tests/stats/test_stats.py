"""The evidence rule against references that can be checked by eye, and against simulated truths."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.stats import EvidenceSettings

Floats = NDArray[np.float64]
N, L, H = 40, 6, 5


def probe(rng: np.random.Generator, n_pairs: int = N, heads: tuple[int, int] = (L, H)) -> tuple[Floats, Floats, Floats]:
    """Scores [N, L, H], metric_clean [N], metric_corrupted [N] with a clear gap."""
    clean = 3.0 + rng.standard_normal(n_pairs)
    corrupted = -3.0 + rng.standard_normal(n_pairs)
    share = 0.1 * rng.standard_normal(heads)
    scores = (corrupted - clean)[:, None, None] * (share + 0.05 * rng.standard_normal((n_pairs, *heads)))
    return scores, clean, corrupted


# --- shares and their error -----------------------------------------------------------------------------------------


def test_shares_are_ratios_of_means_whatever_the_units() -> None:
    scores, clean, corrupted = probe(np.random.default_rng(0))
    found = stats.shares(scores, clean, corrupted)
    for layer, head in np.ndindex(L, H):
        assert found.share[layer, head] == pytest.approx(np.mean(scores[:, layer, head]) / np.mean(corrupted - clean))
    scaled = stats.shares(-7.0 * scores, -7.0 * clean, -7.0 * corrupted)
    np.testing.assert_allclose(scaled.share, found.share)
    np.testing.assert_allclose(scaled.standard_error, found.standard_error)
    np.testing.assert_allclose(found.influence.mean(axis=0), 0.0, atol=1e-14)


def test_shares_sum_to_one_when_the_scores_are_complete() -> None:
    rng = np.random.default_rng(1)
    parts = rng.dirichlet(np.ones(L * H), size=N).reshape(N, L, H)
    clean, corrupted = rng.normal(3, 1, N), rng.normal(-3, 1, N)
    found = stats.shares(parts * (corrupted - clean)[:, None, None], clean, corrupted)
    assert found.share.sum() == pytest.approx(1.0)


def test_delta_method_error_agrees_with_the_bootstrap_and_the_jackknife() -> None:
    scores, clean, corrupted = probe(np.random.default_rng(2), n_pairs=200)
    found = stats.shares(scores, clean, corrupted)
    resampled = stats.bootstrap_shares(scores, clean, corrupted, resamples=2000, seed=3)
    np.testing.assert_allclose(found.standard_error, resampled.std(axis=0), rtol=0.12)
    left_out = np.array(
        [stats.shares(np.delete(scores, i, 0), np.delete(clean, i), np.delete(corrupted, i)).share for i in range(200)]
    )
    jackknife = np.sqrt(199 / 200 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(found.standard_error, jackknife, rtol=0.02)


def test_bootstrap_is_the_naive_resampling_of_rows() -> None:
    scores, clean, corrupted = probe(np.random.default_rng(4), n_pairs=12)
    found = stats.bootstrap_shares(scores, clean, corrupted, resamples=5, seed=9)
    weights = np.random.default_rng(9).multinomial(12, np.full(12, 1 / 12), size=5)
    for share, weight in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(12), weight)
        np.testing.assert_allclose(share, stats.shares(scores[rows], clean[rows], corrupted[rows]).share)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(5), []
    share = 0.1 * rng.standard_normal((L, H))
    for _ in range(150):
        gap = -4.0 * np.exp(0.4 * rng.standard_normal(32))
        scores = gap[:, None, None] * share + 0.3 * rng.standard_t(5, (32, L, H))
        low, high = stats.interval(stats.shares(scores, np.zeros(32), gap))
        covered.append((low <= share) & (share <= high))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


# --- the paired test ------------------------------------------------------------------------------------------------


def sign_flip_p(differences: Floats, flips: int, rng: np.random.Generator) -> float:
    """Reference: how often random signs of the per-pair differences make a mean as far from zero as the real one."""
    observed = abs(differences.mean())
    beaten = 0
    for _ in range(flips):
        signs = rng.choice([-1.0, 1.0], size=len(differences))
        beaten += abs((signs * differences).mean()) >= observed
    return (beaten + 1) / (flips + 1)


def test_p_values_agree_with_sign_flips() -> None:
    rng = np.random.default_rng(6)
    scores, clean, corrupted = probe(rng, heads=(1, 12))
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
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(7)
    s0, c0, d0 = probe(rng)
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
    scores, clean, corrupted = probe(np.random.default_rng(8))
    same = stats.shares(scores, clean, corrupted)
    change = stats.paired_change(same, stats.shares(scores.copy(), clean, corrupted))
    assert (change.p_value == 1.0).all()
    assert (change.q_value == 1.0).all()
    assert (change.difference == 0.0).all()


def test_the_whole_task_shrinking_is_no_change_of_share() -> None:
    """Rounding leaves differences of 1e-17 with errors as small: the float32 floor keeps them from looking certain."""
    scores, clean, corrupted = probe(np.random.default_rng(9))
    before = stats.shares(scores, clean, corrupted)
    after = stats.shares(0.61 * scores, 0.61 * clean, 0.61 * corrupted)
    assert stats.paired_change(before, after).p_value.min() > 0.9


def test_pairing_finds_what_unpaired_errors_drown() -> None:
    rng = np.random.default_rng(10)
    scores, clean, corrupted = probe(rng)
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
    """With no true change the false-discovery rate is the chance of any discovery at all: promised 0.01."""
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


# --- the active set -------------------------------------------------------------------------------------------------


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


# --- signal, agreement, null bands ----------------------------------------------------------------------------------


def test_signal_needs_pairs_a_gap_and_finite_numbers() -> None:
    rng = np.random.default_rng(16)
    scores, clean, corrupted = probe(rng)
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


def test_split_half_agreement_tells_signal_from_noise() -> None:
    rng = np.random.default_rng(18)
    strong = np.linspace(-1, 1, L * H).reshape(L, H) + 0.01 * rng.standard_normal((N, L, H))
    assert stats.split_half_agreement(strong) > 0.98
    assert abs(stats.split_half_agreement(rng.standard_normal((N, L, H)), splits=50)) < 0.35
    assert np.isnan(stats.split_half_agreement(strong[:3]))
    assert np.isnan(stats.split_half_agreement(strong * np.nan))


def test_spearman_is_scipys() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(19)
    for _ in range(20):
        one, other = rng.integers(0, 5, 15), rng.integers(0, 5, 15)
        assert stats.spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert np.isnan(stats.spearman([1, 1, 1, 1], [1, 2, 3, 4]))
    assert np.isnan(stats.spearman([1, 2], [1, 2]))


def test_null_bands_grow_with_noise_and_are_zero_without() -> None:
    rng = np.random.default_rng(20)
    share = np.exp(-np.arange(60) / 10.0).reshape(6, 10)
    gap = -np.ones(32)
    bands = {}
    for size in (0.0, 0.2, 1.0):
        scores = gap[:, None, None] * (share + size * share * rng.standard_normal((32, 6, 10)))
        bands[size] = {how: stats.null_band(scores, 0 * gap, gap, how=how) for how in ("resamples", "halves")}
    assert bands[0.0]["resamples"].high == 0
    assert bands[0.0]["halves"].high == 0
    for how in ("resamples", "halves"):
        assert 0 < bands[0.2][how].changes.mean() < bands[1.0][how].changes.mean()
        assert bands[1.0][how].low <= bands[1.0][how].median <= bands[1.0][how].high


def test_a_null_band_tells_what_fresh_pairs_would_do() -> None:
    """The band of one probe covers the difference between two probes of fresh pairs of the same population."""
    rng = np.random.default_rng(21)
    share = np.exp(-np.arange(60) / 10.0).reshape(6, 10)
    gap = -np.ones(48)

    def fresh() -> Floats:
        return gap[:, None, None] * (share + 0.7 * (share + 0.01) * rng.standard_normal((48, 6, 10)))

    inside = []
    for _ in range(60):
        one, other = fresh(), fresh()
        band = stats.null_band(one, 0 * gap, gap, resamples=100, seed=1)
        differ = (stats.carrying_set(one.mean(axis=0), 0.8) ^ stats.carrying_set(other.mean(axis=0), 0.8)).sum()
        inside.append(band.low <= differ <= band.high)
    assert np.mean(inside) > 0.8


# --- manners --------------------------------------------------------------------------------------------------------


def test_the_global_random_states_are_left_alone_and_answers_repeat() -> None:
    scores, clean, corrupted = probe(np.random.default_rng(22))

    def everything() -> tuple[object, ...]:
        return (
            stats.split_half_agreement(scores),
            stats.bootstrap_shares(scores, clean, corrupted, resamples=10).tolist(),
            stats.null_band(scores, clean, corrupted, resamples=10).changes.tolist(),
            stats.null_band(scores, clean, corrupted, resamples=10, how="halves").changes.tolist(),
        )

    def global_states() -> tuple[object, str]:
        return random.getstate(), repr(np.random.get_state(legacy=False))

    before = global_states()
    first = everything()
    assert global_states() == before
    np.random.seed(1)
    random.seed(1)
    assert global_states() != before
    assert everything() == first


@pytest.mark.parametrize(
    ("option", "value"),
    [("carry", 0.0), ("carry", 0.95), ("keep", 1.2), ("q", 0.0), ("material", -1.0), ("min_pairs", 1)],
)
def test_bad_settings_are_named(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{option}={value}"):
        EvidenceSettings(**{option: value})  # type: ignore[arg-type]


def test_bad_shapes_are_named() -> None:
    scores, clean, corrupted = probe(np.random.default_rng(23))
    with pytest.raises(UserError, match=r"\(40, 6, 5\).*\(39,\)"):
        stats.shares(scores, clean[:-1], corrupted)
    fewer = stats.shares(scores[1:], clean[1:], corrupted[1:])
    with pytest.raises(UserError, match="same pairs"):
        stats.paired_change(stats.shares(scores, clean, corrupted), fewer)
    with pytest.raises(UserError, match="signal"):
        stats.shares(scores, clean, clean)
    with pytest.raises(UserError, match="how='thirds'"):
        stats.null_band(scores, clean, corrupted, how="thirds")
