"""Bootstrap samples, split halves and null bands, against naive resampling and simulated truths."""

import random

import numpy as np
from helpers.random_probes import H, L, N, random_probe
from numpy.typing import NDArray

from headwatch import stats

Floats = NDArray[np.float64]


def test_a_bootstrap_sample_is_the_naive_resampling_of_rows() -> None:
    scores, clean, corrupted = random_probe(np.random.default_rng(4), n_pairs=12)
    found = stats.bootstrap_importance(scores, resamples=5, seed=9)
    weights = stats.pair_weights(12, 5, np.random.default_rng(9))
    for importance, weight in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(12), weight)
        assert len(rows) == 12
        expected = stats.share_importance(stats.shares(scores[rows], clean[rows], corrupted[rows])).value
        np.testing.assert_allclose(importance, expected)


def test_weights_are_uniform_over_pairs() -> None:
    weights = stats.pair_weights(8, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.04)
    np.testing.assert_allclose(weights.var(axis=0), 7 / 8, atol=0.05)


def test_split_half_agreement_is_high_for_signal_and_near_zero_for_noise() -> None:
    rng = np.random.default_rng(18)
    strong = np.linspace(-1, 1, L * H).reshape(L, H) + 0.01 * rng.standard_normal((N, L, H))
    assert stats.split_half_agreement(strong) > 0.98
    assert abs(stats.split_half_agreement(rng.standard_normal((N, L, H)), splits=50)) < 0.35
    assert np.isnan(stats.split_half_agreement(strong[:3]))
    assert np.isnan(stats.split_half_agreement(strong * np.nan))


def test_null_bands_grow_with_noise_and_are_zero_without() -> None:
    rng = np.random.default_rng(20)
    share = np.exp(-np.arange(60) / 10.0).reshape(6, 10)
    noise = share * rng.standard_normal((32, 6, 10))
    none, some, much = (stats.null_band(-(share + size * noise)) for size in (0.0, 0.2, 1.0))
    assert none.high == 0
    assert 0 < some.changes.mean() < much.changes.mean()
    assert much.low <= much.median <= much.high


def test_a_null_band_covers_the_difference_between_probes_of_fresh_pairs() -> None:
    rng = np.random.default_rng(21)
    share = np.exp(-np.arange(60) / 10.0).reshape(6, 10)
    gap = -np.ones(48)

    def fresh() -> Floats:
        return gap[:, None, None] * (share + 0.7 * (share + 0.01) * rng.standard_normal((48, 6, 10)))

    inside = []
    for _ in range(60):
        one, other = fresh(), fresh()
        band = stats.null_band(one, resamples=100, seed=1)
        differ = (stats.carrying_set(one.mean(axis=0), 0.8) ^ stats.carrying_set(other.mean(axis=0), 0.8)).sum()
        inside.append(band.low <= differ <= band.high)
    assert np.mean(inside) > 0.8


def test_global_random_states_stay_and_results_repeat() -> None:
    scores, *_ = random_probe(np.random.default_rng(22))

    def everything() -> tuple[object, ...]:
        return (
            stats.split_half_agreement(scores),
            stats.bootstrap_importance(scores, resamples=10).tolist(),
            stats.null_band(scores, resamples=10).changes.tolist(),
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
