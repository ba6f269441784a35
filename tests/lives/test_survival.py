"""Kaplan-Meier against its definition, a textbook, lifelines, and spells counted by hand."""

import numpy as np
import pytest

from headwatch.lives.history import HeadHistory
from headwatch.lives.survival import kaplan_meier


def naive_kaplan_meier(lengths: list[int], ended: list[bool], t: float) -> tuple[float, float]:
    """S(t) and Greenwood's sum, from the definition: one factor for each time at which a spell ended."""
    survival, greenwood = 1.0, 0.0
    for time in sorted({x for x, over in zip(lengths, ended, strict=True) if over and x <= t}):
        d = sum(1 for x, over in zip(lengths, ended, strict=True) if over and x == time)
        n = sum(1 for x in lengths if x >= time)
        survival *= 1 - d / n
        greenwood += d / (n * (n - d)) if n > d else float("inf")
    return survival, greenwood


def test_kaplan_meier_against_the_definition() -> None:
    rng = np.random.default_rng(13)
    for _ in range(30):
        n = int(rng.integers(1, 25))
        lengths = [int(x) for x in rng.integers(0, 8, n)]
        ended = [bool(x) for x in rng.random(n) < 0.6]
        curve = kaplan_meier(lengths, ended)
        assert curve.time[0] == 0.0
        assert curve.n_spells == n
        for k, t in enumerate(curve.time):
            survival, greenwood = naive_kaplan_meier(lengths, ended, t)
            assert curve.survival[k] == pytest.approx(survival, abs=1e-12)
            assert curve.lower[k] <= curve.survival[k] <= curve.upper[k]
            if 0.0 < survival < 1.0:
                spread = 1.959963984540054 * np.sqrt(greenwood) / np.log(survival)
                middle = np.log(-np.log(survival))
                ends = [np.exp(-np.exp(middle + spread)), np.exp(-np.exp(middle - spread))]
                assert sorted(ends) == pytest.approx([curve.lower[k], curve.upper[k]])


def test_kaplan_meier_on_freireichs_leukaemia_patients() -> None:
    """Remission in weeks under 6-MP (Freireich et al. 1963), the textbook example: S(6) = 18/21, S(23) = 0.448."""
    ended = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    going = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    curve = kaplan_meier(ended + going, [True] * 9 + [False] * 12)
    at = dict(zip(curve.time, curve.survival, strict=True))
    assert at[6.0] == pytest.approx(0.857, abs=5e-4)
    assert at[10.0] == pytest.approx(0.753, abs=5e-4)
    assert at[22.0] == pytest.approx(0.538, abs=5e-4)
    assert at[23.0] == pytest.approx(0.448, abs=5e-4)
    assert curve.median == 23.0


def test_without_a_spell_or_an_end_there_is_no_median() -> None:
    assert np.isnan(kaplan_meier([], []).median)
    assert kaplan_meier([], []).survival.tolist() == [1.0]
    going = kaplan_meier([10, 20], [False, False])
    assert going.survival.tolist() == [1.0, 1.0, 1.0]
    assert np.isnan(going.median)


def test_survival_of_the_history_counts_first_spells_and_censors_the_last_probe() -> None:
    steps = [0, 10, 25, 30, 50]
    #         head 0  1  2  3: base, emerges and is pruned, emerges and stays, comes back
    member = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)[:, None, :]
    history = HeadHistory(1, 4, rule="circuit")
    for step, now in zip(steps, member, strict=True):
        history.add_membership(step, now, now.astype(float))
    lengths = sorted((s.length, s.end is not None) for s in history.spells() if not s.base and s.number == 1)
    assert lengths == [(15, True), (20, True), (25, False)]
    curve = history.survival()
    assert curve.time.tolist() == [0, 15, 20, 25]
    np.testing.assert_allclose(curve.survival, [1, 2 / 3, 1 / 3, 1 / 3])
    assert history.median_spell() == 20
    assert history.survival(first_only=False).n_spells == 4
    assert history.survival("base").n_spells == 1
    assert history.survival("base").time.tolist() == [0, 30]


def test_where_nothing_survives_the_interval_is_zero_to_the_last_upper_end() -> None:
    curve = kaplan_meier([5.0, 10.0, 20.0], [True, True, True])
    assert curve.survival[-1] == curve.lower[-1] == 0.0
    assert curve.upper[-1] == curve.upper[-2] > 0.3
    assert kaplan_meier([5.0], [True]).upper.tolist() == [1.0, 1.0]


def test_kaplan_meier_is_lifelines(recwarn: pytest.WarningsRecorder) -> None:
    """The estimate and its log-log Greenwood interval, against the library that survival analysts use."""
    lifelines = pytest.importorskip("lifelines")
    rng = np.random.default_rng(21)
    for n in (2, 5, 30, 200):
        lengths = rng.integers(1, 40, n).astype(float)
        ended = rng.random(n) < 0.6
        ended[0] = True
        curve = kaplan_meier(lengths, ended)
        oracle = lifelines.KaplanMeierFitter(alpha=0.05).fit(lengths, ended)
        np.testing.assert_allclose(curve.time, oracle.survival_function_.index, atol=0)
        np.testing.assert_allclose(curve.survival, oracle.survival_function_.to_numpy()[:, 0], atol=1e-12, rtol=0)
        inside = (curve.survival > 0.0) & (curve.survival < 1.0)  # where lifelines has an interval
        interval = oracle.confidence_interval_.to_numpy()
        np.testing.assert_allclose(curve.lower[inside], interval[inside, 0], atol=1e-12, rtol=0)
        np.testing.assert_allclose(curve.upper[inside], interval[inside, 1], atol=1e-12, rtol=0)
        assert curve.median == oracle.median_survival_time_ or (
            np.isnan(curve.median) and np.isinf(oracle.median_survival_time_)
        )
