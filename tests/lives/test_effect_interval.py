"""The interval of a history's effect: a paired bootstrap, live as from disk, and None without resamples."""

from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import write_synthetic_run
from helpers.tiny_graph import random_strength, tiny_graph
from numpy.typing import NDArray

from headwatch import stats
from headwatch.circuits.stability import circuit_heads
from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.stats.importance import effect

Floats = NDArray[np.float64]


def evidence_history(scores: list[Floats]) -> HeadHistory:
    history = HeadHistory(*scores[0].shape[1:])
    gap = np.full(len(scores[0]), 3.0)
    for step, at in enumerate(scores):
        history.add(step, at * gap[:, None, None], 0.0 * gap, gap)
    return history


def test_the_interval_is_the_paired_bootstrap_of_the_mean_over_probes() -> None:
    rng = np.random.default_rng(0)
    base = 0.1 * rng.standard_normal((24, 3, 4)) + rng.standard_normal((3, 4))
    probes = [base, base + 0.3 * rng.random((3, 4)), base + 0.1 * rng.standard_normal(base.shape)]
    history = evidence_history(probes)
    scaled = [np.float32(3.0 * p).astype(float) for p in probes]
    base_draws, *later_draws = (stats.bootstrap_importance(at, 200) for at in scaled)
    mean = np.mean([effect(at, base_draws) for at in later_draws], axis=0)
    np.testing.assert_allclose(history.effect_interval(), np.quantile(mean, (0.025, 0.975), axis=0), atol=1e-5)
    low, high = history.effect_interval()
    assert ((low <= history.effect()) & (history.effect() <= high)).mean() > 0.9


def test_the_noise_of_the_pairs_cancels() -> None:
    """Equal probes have an effect of zero in every resample, however much the pairs differ."""
    rng = np.random.default_rng(1)
    same = rng.standard_normal((16, 2, 3)) + 0.5
    low, high = evidence_history([same, same]).effect_interval()
    assert not low.any()
    assert not high.any()
    graph = tiny_graph()
    strength = random_strength(graph, 12, 5)
    one, other = (circuit_heads(strength, graph, top_n=0.3, resamples=20, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.importance_draws, other.importance_draws)
    assert one.importance_draws.std(axis=0).max() > 0.0


@pytest.mark.parametrize("rule", ["evidence", "circuit"])
def test_a_history_from_disk_has_the_interval_of_the_live_one(tmp_path: Path, rule: str) -> None:
    run = write_synthetic_run(tmp_path, steps=range(0, 31, 10), families=("addition",))
    history = HeadHistory.from_run(run, rule=rule)
    low, high = history.effect_interval()
    assert (low <= high).all()
    assert (high - low).max() > 0.01
    assert np.isfinite(history.importance_low).all()
    inside = (history.importance_low - 1e-6 <= history.importance) & (history.importance <= history.importance_high)
    assert inside.mean() > 0.8
    if rule == "circuit":
        draws = np.array([run.read_scores(step).importance_draws[0] for step in run.steps], np.float64)
        mean = np.mean([effect(at, draws[0]) for at in draws[1:]], axis=0)
        np.testing.assert_allclose((low, high), np.quantile(mean, (0.025, 0.975), axis=0), atol=1e-6)
        np.testing.assert_allclose(history.importance_high, np.quantile(draws, 0.975, axis=1), atol=1e-7)


def test_a_circuit_history_without_resamples_has_no_interval() -> None:
    history = HeadHistory(2, 2, rule="circuit")
    for step in range(2):
        history.add_membership(step, np.eye(2) > 0, np.eye(2))
    assert history.effect_interval() is None
    with pytest.raises(UserError, match="importance_draws"):
        history.add_membership(2, np.eye(2) > 0, np.eye(2), None, np.zeros((5, 3, 3)))
