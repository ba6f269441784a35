"""Alerts: each kind is raised in its own situation, none in a run without change, and a missing verdict is reported."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headwatch.lives.history import HeadHistory
from headwatch.monitor.alert_rules import (
    base_dropped,
    find_alerts,
    inexact_scores,
    no_verdict,
    reward_up_probes_down,
    rising_trend_p,
    sign_test_p,
)
from headwatch.monitor.alerts import KINDS, Alert, alert_scalars

STEPS = list(range(0, 110, 10))
FINE = {"completeness_error": 0.01, "row_sum_error": 1e-6, "stream_error": None}
RISING, FALLING = np.linspace(0.1, 0.9, 10), np.linspace(0.9, 0.1, 10)


def rewards(values: Any) -> list[dict[str, float]]:
    """One logged reward in the middle of each window between two probes."""
    return [{"step": 10 * index + 5, "reward": float(value)} for index, value in enumerate(values)]


def answers(n_correct: Any, n_pairs: int = 64) -> list[np.ndarray]:
    """At each probe the first n_correct pairs are answered correctly."""
    return [np.arange(n_pairs) < n for n in n_correct]


def history(n_pairs: int = 32, noise: float = 0.1, gap: float = -3.0, probes: int = 2, seed: int = 0) -> HeadHistory:
    """A run without change: the same means, fresh noise for every pair and probe."""
    rng = np.random.default_rng(seed)
    unchanged = HeadHistory(3, 4, family="addition")
    means = rng.standard_normal((3, 4))
    for probe in range(probes):
        scores = means + noise * rng.standard_normal((n_pairs, 3, 4))
        clean = rng.standard_normal(n_pairs) * 0.1
        unchanged.add(10 * probe, scores, clean, clean + gap + 0.1 * rng.standard_normal(n_pairs))
    return unchanged


# --- reward up, probes down -----------------------------------------------------------------------------------------


def test_reward_up_probes_down() -> None:
    found = reward_up_probes_down("carry", STEPS, answers(range(50, 28, -2)), rewards(RISING))
    assert found is not None
    assert found.kind == "reward_up_probes_down"
    assert found.level == "warning"
    assert "carry: since step 0" in found.text
    assert found.value == pytest.approx(20 / 64)


def test_a_late_drop_is_found_within_the_window() -> None:
    n_correct = [20, 30, 40, 50, 55, 60, 62, 58, 50, 45, 40, 36, 32]
    steps = [10 * i for i in range(13)]
    found = reward_up_probes_down("carry", steps, answers(n_correct), rewards(np.linspace(0.1, 0.9, 12)))
    assert found is not None
    assert "since step 40" in found.text


@pytest.mark.parametrize(
    ("n_correct", "reward"),
    [
        pytest.param(range(50, 28, -2), [0.5] * 10, id="constant reward"),
        pytest.param(range(50, 28, -2), FALLING, id="both fall"),
        pytest.param([50] * 11, RISING, id="constant accuracy"),
        pytest.param(range(30, 52, 2), RISING, id="both rise"),
        pytest.param([50] * 10 + [47], RISING, id="three pairs lost"),
        pytest.param(range(50, 28, -2), np.linspace(0.1, 0.9, 4), id="four rewards"),
    ],
)
def test_no_reward_alert(n_correct: Any, reward: Any) -> None:
    assert reward_up_probes_down("carry", STEPS, answers(n_correct), rewards(reward)) is None


def test_no_reward_alert_in_noise() -> None:
    """Fresh random answers at every probe, noisier than an unchanged model, and a random reward."""
    rng = np.random.default_rng(4)
    raised = 0
    for _ in range(100):
        correct = [rng.random(64) < 0.6 for _ in range(20)]
        rows = rewards(rng.random(19))
        steps = [10 * i for i in range(20)]
        raised += any(
            reward_up_probes_down("f", steps[:n], correct[:n], rows[: n - 1]) is not None for n in range(2, 21)
        )
    assert raised == 0


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (7, 2), (3, 9), (20, 20)])
def test_sign_test_counts_fair_coins(lost: int, gained: int) -> None:
    n = lost + gained
    exact = sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n
    assert sign_test_p(lost, gained) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "p"),
    [
        pytest.param(range(6), 1 / math.factorial(6), id="sorted"),
        pytest.param([0, 1, 2, 3, 5, 4], 6 / math.factorial(6), id="one inversion"),
        pytest.param([3, 2, 1, 0], 1.0, id="falling"),
        pytest.param([1.0] * 4, 1.0, id="constant"),
    ],
)
def test_trend_test_counts_permutations(values: Any, p: float) -> None:
    assert rising_trend_p(list(values)) == pytest.approx(p)


# --- other kinds ----------------------------------------------------------------------------------------------------


class Dropped:
    """A history in which `dropped` of `base` base heads are dropped."""

    family, steps = "addition", [0, 10]

    def __init__(self, dropped: int, base: int = 10) -> None:
        self._counts = {"base": 0, "retained": base - dropped, "dropped": dropped}

    def latest_counts(self) -> dict[str, int]:
        return self._counts


def test_base_dropped() -> None:
    found = base_dropped(Dropped(9))
    assert found is not None
    assert "9 of 10 base heads" in found.text


@pytest.mark.parametrize("unchanged", [Dropped(8), Dropped(2, base=2), history()], ids=["eight", "few", "none"])
def test_base_not_dropped(unchanged: Any) -> None:
    assert base_dropped(unchanged) is None


def test_inexact_scores() -> None:
    assert inexact_scores(10, FINE) == []
    (found,) = inexact_scores(10, {"completeness_error": 0.4, "row_sum_error": 1e-6})
    assert "completeness error is 0.4, above 0.25" in found.text
    assert "scoring.steps: 10" in found.text
    assert len(inexact_scores(10, {"completeness_error": float("nan"), "stream_error": 0.1})) == 2


@pytest.mark.parametrize(
    ("make", "n_pairs", "kind", "part"),
    [
        pytest.param(lambda: history(gap=0.0), 32, "insufficient_signal", "insufficient signal", id="no gap"),
        pytest.param(lambda: history(n_pairs=4), 4, "insufficient_data", "4 pairs where 8 are needed", id="few pairs"),
        pytest.param(lambda: history(noise=30.0), 32, "unstable", "too unstable", id="noise"),
    ],
)
def test_a_missing_verdict_is_a_status(make: Callable[[], HeadHistory], n_pairs: int, kind: str, part: str) -> None:
    found = no_verdict(make(), n_pairs)
    assert found is not None
    assert (found.kind, found.level) == (kind, "status")
    assert part in found.text


@pytest.mark.parametrize(("split_half", "raised"), [(0.49, True), (0.5, False)])
def test_threshold_of_unstable_scores(split_half: float, raised: bool) -> None:
    noisy = history(noise=30.0)
    noisy.arrays.rows[-1].split_half = split_half
    assert (no_verdict(noisy, 32) is not None) == raised


def test_no_status_for_enough_signal() -> None:
    assert no_verdict(history(), 32) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_alert_without_change(seed: int) -> None:
    unchanged = history(probes=11, seed=seed)
    rng = np.random.default_rng(seed)
    rows = rewards(0.5 + 0.1 * rng.standard_normal(10))
    assert find_alerts([unchanged], FINE, {"addition": answers([40] * 11, 32)}, rows) == []


def test_every_kind_has_a_scalar() -> None:
    assert alert_scalars([]) == {"alerts": 0, **{f"alerts/{kind}": 0 for kind in KINDS}}
    found = find_alerts([history(gap=0.0)], {"completeness_error": 2.0}, {"addition": answers([4, 4], 32)}, [])
    assert [alert.kind for alert in found] == ["inexact", "insufficient_signal"]
    scalars = alert_scalars(found)
    assert (scalars["alerts"], scalars["alerts/inexact"], scalars["alerts/unstable"]) == (2, 1, 0)


def test_an_alert_as_json() -> None:
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
