import numpy as np
import pytest
import scipy.stats

from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import head_page_data


@pytest.fixture(scope="module")
def history(grpo: RunFolder) -> HeadHistory:
    return HeadHistory.from_run(grpo)


def test_changed_heads_come_first(grpo: RunFolder, history: HeadHistory):
    circuit = HeadHistory.from_run(grpo, rule="circuit")
    heads, n_first = head_page_data.ranked_heads([history, circuit])
    assert len(set(heads)) == len(heads) == history.n_layers * history.n_heads
    present = (history.active | history.member | circuit.active).any(axis=0) | (
        history.strengthened | history.weakened
    ).any(axis=0)
    assert {tuple(int(i) for i in at) for at in np.argwhere(present)} == set(heads[:n_first])
    assert head_page_data.ranked_heads([]) == ([], 0)


def test_share_paths_and_intervals(grpo: RunFolder, history: HeadHistory):
    heads, _ = head_page_data.ranked_heads([history])
    pairs = grpo.pairs_of("addition")
    paths = head_page_data.share_paths(history, heads, len(pairs))
    assert [tuple(h) for h in paths["heads"]] == heads
    at = grpo.read_scores(history.steps[-1])
    scores, gap = at.head_scores[pairs].astype(float), (at.metric_corrupted - at.metric_clean)[pairs].astype(float)
    share = scores.mean(axis=0) / gap.mean()
    error = ((scores - share * gap[:, None, None]) / gap.mean()).std(axis=0, ddof=1) / np.sqrt(len(pairs))
    half = scipy.stats.t.ppf(0.975, len(pairs) - 1) * error  # the delta method, written out
    for head, row, half_width in zip(heads, paths["rows"], paths["half_widths"], strict=True):
        np.testing.assert_allclose(np.array(row) * paths["unit"], history.share[:, head[0], head[1]], atol=0.6e-4)
        np.testing.assert_allclose(half_width[-1] * paths["unit"], half[head], atol=0.6e-4)
    shown = np.array([[sign == "1" for sign in signs] for signs in paths["detectable"]]).T
    assert (shown == np.stack([history.detectable[:, layer, head] for layer, head in heads], 1)).all()
    assert 0 < shown.sum() < shown.size
    assert max(half_width[-1] for half_width in paths["half_widths"]) > 20  # so not all compared values are zero


def test_probes_are_thinned_before_heads(history: HeadHistory):
    heads, _ = head_page_data.ranked_heads([history])
    thin = head_page_data.share_paths(history, heads, 32, max_values=len(heads) * 5)
    assert (thin["probes"][0], thin["probes"][-1]) == (0, len(history.steps) - 1)
    assert len(thin["rows"]) * len(thin["probes"]) <= max(len(heads) * 5, 12 * len(thin["rows"]))
    few = head_page_data.share_paths(history, heads, 32, max_values=33)
    assert len(few["heads"]) == 3
    assert few["heads"] == [list(h) for h in heads[:3]]


def test_importance_paths_of_circuits(grpo: RunFolder):
    circuit = HeadHistory.from_run(grpo, rule="circuit")
    paths = head_page_data.importance_paths(circuit, [(0, 0), (2, 1)])
    np.testing.assert_allclose(np.array(paths["rows"][1]) * paths["unit"], circuit.importance[:, 2, 1], atol=0.6e-5)
    assert head_page_data.share_paths(circuit, [(0, 0)], 32) is None


def test_strongest_edges_are_the_largest(grpo: RunFolder, history: HeadHistory):
    shape = (history.n_layers, history.n_heads)
    matrices = [grpo.read_scores(step).edges_mean_abs[0] for step in grpo.steps]
    heads, n_first = head_page_data.ranked_heads([history])
    found = head_page_data.strongest_edges(range(len(matrices)), matrices.__getitem__, shape, heads, n_first)
    assert found["probes"][0] == 0
    assert found["probes"][-1] == len(matrices) - 1
    q, k = len(found["probes"]) - 1, 3
    layer, head = found["heads"][k]
    matrix = matrices[-1]
    row = matrix[1 + layer * (shape[1] + 1) + head]
    assert found["out"][k][q][::2] == [int(i) for i in np.argsort(-row)[:5] if row[i] > 0]
    np.testing.assert_allclose(
        np.array(found["out"][k][q][1::2]) * found["unit"],
        np.sort(row)[::-1][: len(found["out"][k][q]) // 2],
        atol=found["unit"],
    )
    columns = matrix[:, layer * (3 * shape[1] + 1) + 3 * head :][:, :3]
    places = [divmod(int(i), 3) for i in np.argsort(-columns, axis=None)[:5]]
    into = found["into"][k][q]
    assert list(zip(into[::3], into[1::3], strict=True)) == places[: len(into) // 3]


def test_change_table_keeps_last_probe(history: HeadHistory):
    heads = head_page_data.ranked_heads([history])[0]
    whole = head_page_data.change_table(history, heads)
    assert whole["probes"] == list(range(1, len(history.steps)))  # the base has none
    few = head_page_data.change_table(history, heads, max_values=12 * len(heads))
    assert few["probes"] == [len(history.steps) - 1]
    assert head_page_data.change_table(history, heads, max_values=24)["heads"] == [list(head) for head in heads[:2]]
    layer, head = whole["heads"][3]
    for of in ("share", "raw", "importance"):
        change = history.change(of)
        low, high = (side[4, layer, head] for side in change.interval())
        expected = (change.difference[4, layer, head], (high - low) / 2, change.p_value[4, layer, head])
        np.testing.assert_allclose(whole[of][3][12:15], expected, rtol=0.06)
        assert few[of][3] == whole[of][3][-4:]
    assert head_page_data.change_table(HeadHistory(2, 2), [(0, 0)]) is None


def test_importance_intervals(grpo: RunFolder):
    circuit = HeadHistory.from_run(grpo, rule="circuit")
    heads = head_page_data.ranked_heads([circuit])[0]
    paths = head_page_data.importance_paths(circuit, heads)
    for k, (layer, head) in enumerate(heads):
        for name, distance in (
            ("low", circuit.importance - circuit.importance_low),
            ("high", circuit.importance_high - circuit.importance),
        ):
            shown = paths[name][k] or [0] * len(paths["probes"])
            np.testing.assert_allclose(shown, distance[paths["probes"], layer, head] * 1e5, atol=0.51)
    assert 0 in paths["high"]  # a head that is never in the circuit
    old = HeadHistory(2, 2, rule="circuit")
    old.add_membership(0, np.eye(2) > 0, np.eye(2))
    assert head_page_data.importance_paths(old, [(0, 0)])["low"] is None


def test_edges_within_budget_or_missing(grpo: RunFolder, history: HeadHistory):
    shape, heads = (history.n_layers, history.n_heads), head_page_data.ranked_heads([history])[0]
    matrices = [grpo.read_scores(step).edges_mean_abs[0] for step in grpo.steps]
    few = head_page_data.strongest_edges(range(11), matrices.__getitem__, shape, heads, 4, max_values=100)
    values = sum(len(entry or []) for side in ("out", "into") for rows in few[side] for entry in rows)
    assert values <= 100
    spread = head_page_data.strongest_edges(range(11), matrices.__getitem__, shape, heads, 4, max_values=5000)
    kept = [sum(entry is not None for entry in rows) for rows in spread["out"]]
    assert kept[:4] == [len(spread["probes"])] * 4
    assert set(kept[4:]) == {2}  # the first probe and the last
    assert head_page_data.strongest_edges([], matrices.__getitem__, shape, heads, 4) is None
    assert head_page_data.strongest_edges([0], lambda _: None, shape, heads, 4) is None
    assert head_page_data.strongest_edges([0], matrices.__getitem__, (3, 3), heads, 4) is None
