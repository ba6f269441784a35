"""Newly active heads and the reward: which logged values belong to which probe, common trends, scalars."""

import numpy as np
import pytest

from headwatch.lives.history import HeadHistory
from headwatch.lives.reward_coupling import coupling_scalars


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


def test_changes_do_not_follow_a_common_trend() -> None:
    rng = np.random.default_rng(14)
    history = HeadHistory(1, 60, rule="circuit")
    for probe in range(40):
        n = 0 if probe == 0 else probe + int(rng.integers(0, 5))
        history.add_membership(probe, np.arange(60)[None] < n, np.ones((1, 60)))
    trend = history.coupling([{"step": p, "reward": p + 2.0 * rng.standard_normal()} for p in range(40)])
    assert trend.rho > 0.9
    assert abs(trend.rho_changes) < 0.4


def test_at_a_positive_lag_the_heads_change_first() -> None:
    """From a history and a trainer's log: heads change at a probe, the reward two windows later."""
    rng = np.random.default_rng(3)
    counts = np.cumsum(rng.integers(0, 4, 30))
    history = HeadHistory(1, 120, rule="circuit")
    for probe, n in enumerate(counts):
        history.add_membership(10 * probe, np.arange(120)[None] < n * (probe > 0), np.ones((1, 120)))
    level = np.array(history.newly_active(), float)
    rows = [{"step": 10 * p - 5, "reward": float(level[max(p - 2, 0)] + 0.01 * rng.random())} for p in range(1, 30)]
    assert history.coupling(rows).lagged().best_lag == 2


def test_scalars_of_too_few_probes_are_enough_0_alone() -> None:
    rng = np.random.default_rng(8)
    steps = list(range(0, 200, 10))
    newly, turnover = (rng.integers(0, 30, 20).tolist() for _ in range(2))
    rows = [{"step": step, "reward": float(rng.random())} for step in steps]
    few = coupling_scalars(steps[:8], newly[:8], turnover[:8], rows, "reward")
    assert few == {"coupling/reward/newly_active/enough": 0.0, "coupling/reward/turnover/enough": 0.0}
    many = coupling_scalars(steps, newly, turnover, rows, "reward")
    assert many["coupling/reward/turnover/enough"] == 1.0
    assert {"rho", "lag", "p"} <= {name.rsplit("/", 1)[1] for name in many}
