import json

import numpy as np
import pytest
from helpers.plain_run import write_plain_run

from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, plotly


@pytest.fixture(scope="module", params=["evidence", "circuit"])
def drawn(request, grpo: RunFolder) -> dict[str, dict]:
    history = HeadHistory.from_run(grpo, rule=request.param)
    return plotly.draw(figure_data.all_figures(history, grpo.training()))


def test_plotly_accepts_every_figure(drawn):
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="needs the wandb extra: plotly")
    assert set(drawn) == {"cohorts", "activation_frequency", "effect", "lives", "survival"}
    for name, figure in drawn.items():
        written = graph_objects.Figure(figure).to_json()  # raises on a property unknown to plotly
        assert "bdata" not in written, name
        assert len(written) < 6000, name  # plotly's default template alone is 6 kB


def test_figures_are_small_json_with_step(drawn):
    for name, figure in drawn.items():
        text = json.dumps(figure, allow_nan=False)
        assert json.loads(text) == figure
        assert len(text) < 5000, name
        assert "step 100" in figure["layout"]["title"]["text"], name
        assert figure["layout"]["template"] == "none"


def test_cohort_areas_and_reward(drawn, grpo: RunFolder):
    traces = drawn["cohorts"]["data"]
    areas = [trace for trace in traces if trace.get("stackgroup")]
    newly = next(trace for trace in traces if trace["name"] == "newly active")
    np.testing.assert_array_equal(np.sum([trace["y"] for trace in areas], axis=0), newly["y"])
    assert next(t for t in traces if t["name"] == "retained base heads")["line"]["dash"] == "dash"
    assert next(t for t in traces if t["name"] == "reward")["yaxis"] == "y2"


def test_many_cohorts_are_merged():
    cohorts = [{"step": 10 * k, "active": [k, 1]} for k in range(1, 31)]
    merged = plotly._merged_cohorts(cohorts)
    assert len(merged) <= plotly.MAX_COHORTS
    assert np.sum([active for _, active in merged], axis=0).tolist() == [sum(range(1, 31)), 30]
    assert merged[0][0] == "10–40"


def test_frequency_map_signs_and_squares(grpo: RunFolder):
    history = HeadHistory.from_run(grpo)
    heatmap, squares = plotly.activation_frequency(figure_data.all_figures(history)["activation_frequency"])["data"]
    signed = np.array(heatmap["z"]).T  # layers across, heads down
    np.testing.assert_allclose(np.abs(signed), history.activation_frequency(), atol=0.006)
    base = history.active[0]
    assert (signed[base] < 0).all()
    assert (signed[~base] >= 0).all()
    assert squares["marker"]["symbol"] == "square-open"
    active = [(int(layer), int(head)) for layer, head in np.argwhere(history.active[-1])]
    assert list(zip(squares["x"], squares["y"], strict=True)) == active


def test_life_bars_are_spells(grpo: RunFolder):
    history = HeadHistory.from_run(grpo)
    traces = plotly.lives(figure_data.all_figures(history)["lives"])["data"]
    bars = sorted((trace["x"][i], trace["x"][i + 1]) for trace in traces for i in range(0, len(trace["x"]), 3))
    state = history.state
    base = np.isin(state, (1, 2, 3)).any(axis=0)
    stayed = base & ~(state == 3).any(axis=0)
    spells = [s for s in history.spells() if not stayed[s.layer, s.head]]
    assert bars == sorted((s.start, s.last_seen if s.end is None else s.end) for s in spells)
    assert 0 < len(spells) < len(history.spells())


def test_figures_of_a_large_model_show_the_heads_that_did_something():
    """36 emerged heads of 336: no more rows than a panel has room for, and the title gives both numbers."""
    heads = [[k // 12, k % 12] for k in range(36)]
    figure = {"steps": [0, 10], "heads": heads, "group": ["joined"] * 36, "lives": ["04"] * 30 + ["45"] * 6}
    drawn = plotly.lives({"family": "recall", "rule": "evidence", "step": 10, **figure})
    assert len(drawn["layout"]["yaxis"]["ticktext"]) == plotly.MAX_ROWS
    assert "(20 of 36)" in drawn["layout"]["title"]["text"]
    effect = np.full((28, 12), 0.5).tolist()
    about = {"family": "recall", "rule": "evidence", "step": 10, "measure": "|share|", "low": None, "high": None}
    (heatmap,) = plotly.effect({**about, "effect": effect, "changed": [[3, 4]]})["data"]
    assert [(x, y) for y, row in enumerate(heatmap["z"]) for x, e in enumerate(row) if e is not None] == [(3, 4)]


@pytest.mark.parametrize(("steps", "gap"), [([], 6.0), ([0], 6.0), ([0, 10], 0.0)])
def test_figures_without_data(tmp_path, steps, gap):
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="needs the wandb extra: plotly")
    history = HeadHistory.from_run(write_plain_run(tmp_path, steps, gap=gap))
    for figure in plotly.draw(figure_data.all_figures(history)).values():
        graph_objects.Figure(figure)
