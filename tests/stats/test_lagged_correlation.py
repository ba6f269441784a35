"""Rank correlation of two series against scipy, and its test under independence and with planted lags."""

import numpy as np
import pytest
import scipy.stats

from headwatch import stats
from headwatch.stats.lagged_correlation import lagged_correlation


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(19)
    for _ in range(20):
        one, other = rng.integers(0, 5, 15), rng.integers(0, 5, 15)
        assert stats.spearman(one, other) == pytest.approx(scipy.stats.spearmanr(one, other).statistic)
    assert np.isnan(stats.spearman([1, 1, 1, 1], [1, 2, 3, 4]))
    assert np.isnan(stats.spearman([1, 2], [1, 2]))


def ar1(coefficient: float, n: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(n + 60)
    series = np.zeros(n + 60)
    for t in range(1, n + 60):
        series[t] = coefficient * series[t - 1] + noise[t]
    return series[60:]


def test_each_lag_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 30).astype(float), rng.standard_normal(30)  # ties on one side
    found = lagged_correlation(x, y)
    a, b = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    for lag, rho in zip(found.lags, found.rho, strict=True):
        first, second = (a[: 30 - lag], b[lag:]) if lag >= 0 else (a[-lag:], b[:lag])
        assert rho == pytest.approx(scipy.stats.pearsonr(first, second).statistic, abs=1e-12)
    assert found.rho[found.lags.index(0)] == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_with_blocks_of_length_1_p_equals_scipys_permutation_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(6), rng.standard_normal(6)
    found = lagged_correlation(x, y, max_lag=0, blocks=6, min_length=6)

    def statistic(one: np.ndarray) -> float:
        return abs(scipy.stats.spearmanr(one, y).statistic)

    plain = scipy.stats.permutation_test((x,), statistic, permutation_type="pairings", alternative="greater")
    assert found.p_value == pytest.approx(plain.pvalue, abs=1e-12)


@pytest.mark.parametrize("lag", [-3, -1, 0, 2])
def test_a_planted_lag_is_found_and_described(lag: int) -> None:
    rng = np.random.default_rng(5)
    heads = rng.standard_normal(40)
    reward = np.roll(heads, lag) + 0.3 * rng.standard_normal(40)
    found = lagged_correlation(heads, reward)
    assert found.best_lag == lag
    assert found.best_rho > 0.8
    assert found.p_value < 0.01
    sentence = found.describe("Newly active heads", "reward")
    assert ("at the same probe" if lag == 0 else "before reward" if lag > 0 else "after reward") in sentence


SERIES = {
    "white, 16": lambda rng: ar1(0.0, 16, rng),
    "AR(0.5), 24": lambda rng: ar1(0.5, 24, rng),
    "AR(0.7), 48": lambda rng: ar1(0.7, 48, rng),
    "changes of AR(0.7), 11": lambda rng: np.diff(ar1(0.7, 12, rng)),
    "changes of white, 24": lambda rng: np.diff(ar1(0.0, 25, rng)),
}


@pytest.mark.parametrize("kind", SERIES)
def test_p_values_are_uniform_under_independence(kind: str) -> None:
    rng, repeats = np.random.default_rng(11), 300
    p = np.array([lagged_correlation(SERIES[kind](rng), SERIES[kind](rng)).p_value for _ in range(repeats)])
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / repeats), level


def test_p_values_that_ignore_autocorrelation_are_too_small() -> None:
    rng = np.random.default_rng(11)
    p = np.array([scipy.stats.spearmanr(ar1(0.7, 48, rng), ar1(0.7, 48, rng)).pvalue for _ in range(300)])
    assert (p <= 0.05).mean() > 0.15


def test_a_short_or_constant_series_has_a_status() -> None:
    short = lagged_correlation(np.arange(10.0), np.arange(10.0))
    assert (short.status, short.best_lag) == ("insufficient data", None)
    assert np.isnan(short.p_value)
    assert np.isnan(short.best_rho)
    assert "insufficient data" in short.describe("Heads", "reward")
    still = lagged_correlation(np.ones(20), np.arange(20.0))
    assert still.status == "constant"


def test_lags_are_at_most_a_quarter_of_the_series() -> None:
    rng = np.random.default_rng(6)
    for n, reach in ((11, 2), (12, 3), (40, 3)):
        found = lagged_correlation(rng.standard_normal(n), rng.standard_normal(n))
        assert found.lags == tuple(range(-reach, reach + 1))


def test_a_planted_lag_in_a_long_series_is_found() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal(500)
    assert lagged_correlation(x, np.roll(x, 1)).p_value < 0.001


def test_a_constant_series_is_described_as_such() -> None:
    flat = lagged_correlation(np.zeros(20), np.arange(20.0))
    assert flat.describe("Heads", "reward") == "Heads and reward: one of the two never changes."
