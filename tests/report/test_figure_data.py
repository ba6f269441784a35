import json
import math

import numpy as np
import pytest
from helpers.plain_run import write_plain_run

from headwatch.lives.history import HeadHistory
from headwatch.lives.states import HeadState
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data


@pytest.fixture(scope="module")
def history(grpo: RunFolder) -> HeadHistory:
    return HeadHistory.from_run(grpo)


def test_figures_are_plain_json(grpo: RunFolder, history: HeadHistory):
    for rule in ("evidence", "circuit"):
        for family in grpo.families:
            drawn = figure_data.all_figures(HeadHistory.from_run(grpo, family, rule), grpo.training())
            assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn


def test_cohorts_sum_to_newly_active(history: HeadHistory):
    chart = figure_data.cohort_chart(history)
    stacked = np.sum([cohort["active"] for cohort in chart["cohorts"]], axis=0)
    assert len(chart["cohorts"]) > 1
    np.testing.assert_array_equal(stacked, chart["newly_active"])
    assert chart["retained"][0] == (history.state[0] == HeadState.BASE).sum() > 0


@pytest.mark.parametrize("rule", ["evidence", "circuit"])
def test_life_raster_has_state_and_membership(grpo: RunFolder, rule: str):
    history = HeadHistory.from_run(grpo, rule=rule)
    raster = figure_data.life_raster(history)
    rows = {tuple(head): signs for head, signs in zip(raster["heads"], raster["lives"], strict=True)}
    present = np.argwhere((history.active | history.member).any(axis=0))
    assert sorted(rows) == sorted(tuple(int(i) for i in place) for place in present)
    for (layer, head), signs in rows.items():
        for sign, state, active, member in zip(
            signs,
            history.state[:, layer, head],
            history.active[:, layer, head],
            history.member[:, layer, head],
            strict=True,
        ):
            assert (int(sign) if sign.isdigit() else ord(sign) - ord("a")) == state
            assert sign.isdigit() == (active == member)


def test_life_raster_order(history: HeadHistory):
    raster = figure_data.life_raster(history)
    first = {tuple(h): int(history.active[:, h[0], h[1]].argmax()) for h in raster["heads"]}
    keys = [
        (("base", "joined", "crossed").index(group), first[tuple(head)], *head)
        for head, group in zip(raster["heads"], raster["group"], strict=True)
        if group != "crossed"
    ]
    assert keys == sorted(keys)
    assert {"base", "joined"} <= set(raster["group"])


def test_training_curves_by_trainer():
    grpo = [{"step": s, "reward": s / 10, "loss": 0.0, "rewards/accuracy_reward/mean": 0.5} for s in range(1, 6)]
    assert set(figure_data.training_curves(grpo)) == {"reward", "accuracy"}
    sft = [{"step": s, "loss": 2.0 - s, "mean_token_accuracy": 0.5, "eval_loss": 1.0} for s in range(1, 6)]
    assert set(figure_data.training_curves(sft)) == {"loss", "accuracy"}
    assert figure_data.training_curves([]) == {}


def test_training_curves_drop_nan_and_average_long_logs():
    rows = [{"step": s, "loss": float(s)} for s in range(1, 1001)] + [{"step": 1001, "loss": math.nan}, {"step": 1002}]
    curve = figure_data.training_curves([*rows, {"step": 1003, "loss": None}])["loss"]
    assert curve["logs_per_point"] == 5
    assert len(curve["steps"]) == 200
    assert curve["values"][0] == 3.0  # the mean of 1 .. 5
    assert (curve["steps"][0], curve["steps"][-1]) == (5, 1000)  # up to the last step


def test_gap_is_positive_at_base(history: HeadHistory):
    assert history.metric_gap[0] < 0  # logit difference: the clean prompt scores higher
    curve = figure_data.probe_curves(history, [0.5] * len(history.steps))
    assert curve["gap"][0] == pytest.approx(-history.metric_gap[0], abs=1e-3)


def test_survival_omits_groups_without_spells(tmp_path, history: HeadHistory):
    curves = figure_data.survival(history)
    assert set(curves) == {"emerged", "base"}
    assert curves["emerged"]["survival"][0] == 1
    unchanged = HeadHistory.from_run(write_plain_run(tmp_path, [0, 10]))
    assert set(figure_data.survival(unchanged)) == {"base"}


def test_circuit_rule_has_stability_and_no_q(grpo: RunFolder, history: HeadHistory):
    circuit = HeadHistory.from_run(grpo, rule="circuit")
    kept = figure_data.stability(circuit)
    assert 0.0 < kept["mean"][-1] <= 1.0
    assert len(kept["now"]) == circuit.n_layers
    assert figure_data.stability(history) is None
    q = figure_data.event_list(circuit)["columns"].index("q")
    assert all(row[q] is None for row in figure_data.event_list(circuit)["rows"])
    assert all(row[q] is not None for row in figure_data.event_list(history)["rows"])


def test_plain_rounds_and_drops_nan():
    assert figure_data.plain(np.array([[1.23456, np.nan], [np.inf, 2.0]]), 2) == [[1.23, None], [None, 2]]
    assert figure_data.significant(0.00123456, 3) == 0.00123
    assert figure_data.significant(math.nan, 3) is None
