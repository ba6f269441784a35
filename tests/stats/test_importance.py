"""Importance of heads: the paper's effect, the interval of its mean, entropy and kurtosis."""

import numpy as np
import scipy.stats

from headwatch.stats.importance import EffectDraws, effect, entropy, kurtosis, quantile_of


def test_effect_is_the_papers_formula() -> None:
    post, pre = np.array([[0.5, 0.0], [0.2, 0.3]]), np.array([[0.25, 0.25], [0.0, 0.5]])
    expected = [[(0.25) / (0.75 + 1e-6), -0.25 / (0.25 + 1e-6)], [0.2 / (0.2 + 1e-6), -0.2 / (0.8 + 1e-6)]]
    np.testing.assert_allclose(effect(post, pre), expected)
    np.testing.assert_allclose(effect(pre, post), -np.array(expected))
    assert (effect(np.zeros((2, 2)), np.zeros((2, 2))) == 0.0).all()


def test_the_interval_of_the_effect_needs_resamples_of_every_probe() -> None:
    draws = np.random.default_rng(2).random((10, 2, 2))
    effects = EffectDraws()
    assert effects.interval() is None
    effects.add(draws)
    assert effects.interval() is None  # the base alone
    effects.add(draws)
    assert effects.interval() is not None
    effects.add(None)
    effects.add(draws)
    assert effects.interval() is None  # of two probes out of three
    assert np.isnan(quantile_of(np.zeros((0, 2, 2)), 0.5)).all()


def test_entropy_and_kurtosis_are_scipys() -> None:
    importance = np.random.default_rng(3).exponential(size=(6, 5))
    importance[2, 1:] = 0.0
    importance /= importance.sum()
    np.testing.assert_allclose(entropy(importance), scipy.stats.entropy(importance, axis=None) / np.log(30), rtol=1e-12)
    np.testing.assert_allclose(kurtosis(importance), scipy.stats.kurtosis(importance, axis=None), rtol=1e-12)
