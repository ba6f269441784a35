"""Newly active heads beside the reward: which values belong to which probe, and what a common trend does."""

import numpy as np
import pytest
import scipy.stats

from headwatch.lives.history import HeadHistory
from headwatch.lives.reward_coupling import coupling_scalars
from headwatch.stats.lagged_correlation import lagged_correlation


def test_coupling_takes_the_window_since_the_last_probe() -> None:
    history = HeadHistory(1, 6, rule="circuit")
    counts = [0, 1, 3, 2, 5]
    for probe, n in enumerate(counts):
        history.add_membership(10 * probe, np.arange(6)[None] < n, np.ones((1, 6)))
    rows = [{"step": 5 * k, "reward": float(k), "loss": 1.0} for k in range(9)]
    rows[3]["reward"] = float("nan")
    rows[4] = {"step": 20, "reward": None}  # type: ignore[dict-item]
    coupling = history.coupling(rows)
    # Windows (0, 10]: 1, 2; (10, 20]: nothing finite; (20, 30]: 5, 6; (30, 40]: 7, 8.
    assert coupling.steps == (10, 30, 40)
    assert coupling.value == (1.5, 5.5, 7.5)
    assert coupling.newly_active == (1, 2, 5)
    assert coupling.rho == pytest.approx(1.0)
    assert np.isnan(history.coupling(rows, "loss").rho)
    assert history.coupling(rows, "absent").steps == ()


def test_changes_do_not_take_a_common_trend_for_coupling() -> None:
    rng = np.random.default_rng(14)
    history = HeadHistory(1, 60, rule="circuit")
    for probe in range(40):
        n = 0 if probe == 0 else probe + int(rng.integers(0, 5))
        history.add_membership(probe, np.arange(60)[None] < n, np.ones((1, 60)))
    trend = history.coupling([{"step": p, "reward": p + 2.0 * rng.standard_normal()} for p in range(40)])
    assert trend.rho > 0.9
    assert abs(trend.rho_changes) < 0.4


# --- the lagged correlation and its test ----------------------------------------------------------------------------


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
def test_the_p_value_equals_scipys_permutation_test_where_there_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(6), rng.standard_normal(6)
    found = lagged_correlation(x, y, max_lag=0, blocks=6, min_length=6)

    def statistic(one: np.ndarray) -> float:
        return abs(scipy.stats.spearmanr(one, y).statistic)

    plain = scipy.stats.permutation_test((x,), statistic, permutation_type="pairings", alternative="greater")
    assert found.p_value == pytest.approx(plain.pvalue, abs=1e-12)


@pytest.mark.parametrize("lag", [-3, -1, 0, 2])
def test_a_planted_lag_is_found_and_named(lag: int) -> None:
    rng = np.random.default_rng(5)
    heads = rng.standard_normal(40)
    reward = np.roll(heads, lag) + 0.3 * rng.standard_normal(40)
    found = lagged_correlation(heads, reward)
    assert found.best_lag == lag
    assert found.best_rho > 0.8
    assert found.p_value < 0.01
    said = found.words("Newly active heads", "reward")
    assert ("together" if lag == 0 else "before it" if lag > 0 else "after it") in said


def test_it_is_the_heads_that_lead_at_a_positive_lag() -> None:
    """The whole way from a history and a trainer's log: heads change at a probe, the reward two windows later."""
    rng = np.random.default_rng(3)
    counts = np.cumsum(rng.integers(0, 4, 30))
    history = HeadHistory(1, 120, rule="circuit")
    for probe, n in enumerate(counts):
        history.add_membership(10 * probe, np.arange(120)[None] < n * (probe > 0), np.ones((1, 120)))
    level = np.array(history.newly_active(), float)
    rows = [{"step": 10 * p - 5, "reward": float(level[max(p - 2, 0)] + 0.01 * rng.random())} for p in range(1, 30)]
    assert history.coupling(rows).lagged().best_lag == 2


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


def test_a_test_that_ignores_autocorrelation_would_not_be() -> None:
    rng = np.random.default_rng(11)
    p = np.array([scipy.stats.spearmanr(ar1(0.7, 48, rng), ar1(0.7, 48, rng)).pvalue for _ in range(300)])
    assert (p <= 0.05).mean() > 0.15


def test_a_short_or_still_series_is_a_status() -> None:
    short = lagged_correlation(np.arange(10.0), np.arange(10.0))
    assert (short.status, short.best_lag) == ("insufficient data", None)
    assert np.isnan(short.p_value)
    assert np.isnan(short.best_rho)
    assert "insufficient data" in short.words("Heads", "reward")
    still = lagged_correlation(np.ones(20), np.arange(20.0))
    assert still.status == "constant"


def test_lags_reach_no_farther_than_a_quarter_of_the_series() -> None:
    rng = np.random.default_rng(6)
    for n, reach in ((11, 2), (12, 3), (40, 3)):
        found = lagged_correlation(rng.standard_normal(n), rng.standard_normal(n))
        assert found.lags == tuple(range(-reach, reach + 1))


def test_a_long_series_costs_no_more_arrangements() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal(500)
    assert lagged_correlation(x, np.roll(x, 1)).p_value < 0.001


def test_scalars_say_when_there_is_not_enough() -> None:
    rng = np.random.default_rng(8)
    steps = list(range(0, 200, 10))
    newly, turnover = (rng.integers(0, 30, 20).tolist() for _ in range(2))
    rows = [{"step": step, "reward": float(rng.random())} for step in steps]
    few = coupling_scalars(steps[:8], newly[:8], turnover[:8], rows, "reward")
    assert few == {"coupling/reward/newly_active/enough": 0.0, "coupling/reward/turnover/enough": 0.0}
    many = coupling_scalars(steps, newly, turnover, rows, "reward")
    assert many["coupling/reward/turnover/enough"] == 1.0
    assert {"rho", "lag", "p"} <= {name.rsplit("/", 1)[1] for name in many}


def test_what_never_changes_is_said_so() -> None:
    flat = lagged_correlation(np.zeros(20), np.arange(20.0))
    assert flat.words("Heads", "reward") == "Heads beside reward: one of the two never changes."
