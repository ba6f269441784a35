"""Alerts: each fires on what it is for, none on a run in which nothing happens, and silence is never "all is well"."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from headwatch.lives.history import HeadHistory
from headwatch.monitor.alerts import (
    KINDS,
    Alert,
    alert_scalars,
    alerts,
    base_dropped,
    inexact_scores,
    nothing_to_say,
    reward_up_probes_down,
    sign_test,
    trend_p,
)

STEPS = list(range(0, 110, 10))


def rewards(values: Any) -> list[dict[str, float]]:
    """One logged reward in the middle of each window between two probes."""
    return [{"step": 10 * index + 5, "reward": float(value)} for index, value in enumerate(values)]


def answers(rights: Any, n_pairs: int = 64) -> list[np.ndarray]:
    """The same first pairs right at each probe."""
    return [np.arange(n_pairs) < right for right in rights]


def history(n_pairs: int = 32, noise: float = 0.1, gap: float = -3.0, probes: int = 2, seed: int = 0) -> HeadHistory:
    """A run in which nothing changes but noise of its own at every pair and probe."""
    rng = np.random.default_rng(seed)
    told = HeadHistory(3, 4, family="addition")
    means = rng.standard_normal((3, 4))
    for probe in range(probes):
        scores = means + noise * rng.standard_normal((n_pairs, 3, 4))
        clean = rng.standard_normal(n_pairs) * 0.1
        told.add(10 * probe, scores, clean, clean + gap + 0.1 * rng.standard_normal(n_pairs))
    return told


FINE = {"completeness_error": 0.01, "row_sum_error": 1e-6, "stream_error": None}


# --- reward up, probes down -----------------------------------------------------------------------------------------


def test_a_reward_that_rises_while_answers_get_worse() -> None:
    found = reward_up_probes_down("carry", STEPS, answers(range(50, 28, -2)), rewards(np.linspace(0.1, 0.9, 10)))
    assert found is not None
    assert found.kind == "reward_up_probes_down"
    assert found.level == "warning"
    assert "carry: since step 0" in found.text
    assert found.value == pytest.approx(20 / 64)


def test_a_late_fall_after_a_rise_is_seen_against_the_window() -> None:
    rights = [20, 30, 40, 50, 55, 60, 62, 58, 50, 45, 40, 36, 32]
    steps = [10 * i for i in range(13)]
    found = reward_up_probes_down("carry", steps, answers(rights), rewards(np.linspace(0.1, 0.9, 12)))
    assert found is not None
    assert "since step 40" in found.text


@pytest.mark.parametrize(
    ("rights", "reward"),
    [
        (range(50, 28, -2), [0.5] * 10),  # worse, but the reward is flat
        (range(50, 28, -2), np.linspace(0.9, 0.1, 10)),  # both fall
        ([50] * 11, np.linspace(0.1, 0.9, 10)),  # the reward alone
        (range(30, 52, 2), np.linspace(0.1, 0.9, 10)),  # both rise
        ([50] * 10 + [47], np.linspace(0.1, 0.9, 10)),  # three pairs are noise
        (range(50, 28, -2), np.linspace(0.1, 0.9, 4)),  # too few windows to speak of a trend
    ],
)
def test_what_is_no_such_thing(rights: Any, reward: Any) -> None:
    assert reward_up_probes_down("carry", STEPS, answers(rights), rewards(reward)) is None


def test_flat_runs_raise_it_almost_never() -> None:
    """Answers drawn afresh at every probe, noisier than a model that does not change, and a reward of pure noise."""
    rng = np.random.default_rng(4)
    fired = 0
    for _ in range(100):
        correct = [rng.random(64) < 0.6 for _ in range(20)]
        rows = rewards(rng.random(19))
        steps = [10 * i for i in range(20)]
        fired += any(
            reward_up_probes_down("f", steps[:n], correct[:n], rows[: n - 1]) is not None for n in range(2, 21)
        )
    assert fired == 0


def test_the_small_tests_equal_scipy() -> None:
    for lost, won in [(0, 0), (1, 0), (7, 2), (3, 9), (20, 20)]:
        n = max(lost + won, 1)
        exact = scipy.stats.binomtest(lost, n, alternative="greater").pvalue if lost + won else 1.0
        assert sign_test(lost, won) == pytest.approx(exact, abs=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.integers(0, 6, 12) + np.arange(12) * 0.5
        ours = trend_p(x)
        exact = scipy.stats.kendalltau(np.arange(12), x, alternative="greater", method="asymptotic").pvalue
        assert exact <= ours <= exact * 1.7 + 1e-6  # the continuity correction makes it larger
    assert trend_p([1.0, 1.0, 1.0, 1.0]) == 1.0


# --- the others -----------------------------------------------------------------------------------------------------


class Lost:
    """A history in which `dropped` of ten base heads are gone."""

    family, steps = "addition", [0, 10]

    def __init__(self, dropped: int, base: int = 10) -> None:
        self._counts = {"base": [base, 0], "retained": [0, base - dropped], "dropped": [0, dropped]}

    def counts(self) -> dict[str, list[int]]:
        return self._counts


def test_nearly_all_base_heads_dropped() -> None:
    found = base_dropped(Lost(9))
    assert found is not None
    assert "9 of 10 heads" in found.text
    assert base_dropped(Lost(8)) is None
    assert base_dropped(Lost(2, base=2)) is None
    assert base_dropped(history()) is None


def test_scores_that_are_not_what_they_should_be() -> None:
    assert inexact_scores(10, FINE) == []
    (found,) = inexact_scores(10, {"completeness_error": 0.4, "row_sum_error": 1e-6})
    assert "completeness error is 0.4, above 0.25" in found.text
    assert "steps=10" in found.text
    assert len(inexact_scores(10, {"completeness_error": float("nan"), "stream_error": 0.1})) == 2


def test_nothing_to_say_is_said() -> None:
    assert nothing_to_say(history(), 32) is None
    flat = nothing_to_say(history(gap=0.0), 32)
    assert flat is not None
    assert (flat.kind, flat.level) == ("insufficient_signal", "status")
    few = nothing_to_say(history(n_pairs=4), 4)
    assert few is not None
    assert few.kind == "insufficient_data"
    assert "4 pairs where 8 are needed" in few.text
    unstable = nothing_to_say(history(noise=30.0), 32)
    assert unstable is not None
    assert unstable.kind == "unstable"
    edge = history(noise=30.0)
    edge.arrays.rows[-1].split_half = 0.49
    assert nothing_to_say(edge, 32) is not None
    edge.arrays.rows[-1].split_half = 0.5
    assert nothing_to_say(edge, 32) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_run_in_which_nothing_happens_raises_nothing(seed: int) -> None:
    told = history(probes=11, seed=seed)
    rng = np.random.default_rng(seed)
    rows = rewards(0.5 + 0.1 * rng.standard_normal(10))
    assert alerts([told], FINE, {"addition": answers([40] * 11, 32)}, rows) == []


def test_every_kind_has_a_scalar_also_when_there_is_none() -> None:
    none = alert_scalars([])
    assert none == {"alerts": 0, **{f"alerts/{kind}": 0 for kind in KINDS}}
    found = alerts([history(gap=0.0)], {"completeness_error": 2.0}, {"addition": answers([4, 4], 32)}, [])
    assert [alert.kind for alert in found] == ["inexact", "insufficient_signal"]
    scalars = alert_scalars(found)
    assert (scalars["alerts"], scalars["alerts/inexact"], scalars["alerts/unstable"]) == (2, 1, 0)


def test_an_alert_is_written_as_plain_values() -> None:
    row = Alert(5, "inexact", "", "text", math.inf, 0.1).to_json()
    assert row == {
        "step": 5,
        "kind": "inexact",
        "family": "",
        "text": "text",
        "value": None,
        "limit": 0.1,
        "level": "warning",
    }
