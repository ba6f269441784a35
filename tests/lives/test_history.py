"""States and events by both rules on planted truths, and the numbers derived from them against counts by hand."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers.planted_history import BASE, H, L, N, PlantedHistory, shares, state_labels
from helpers.synthetic_runs import write_synthetic_run

from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import ACTIVE, HeadState, is_in
from headwatch.stats import EvidenceSettings
from headwatch.stats.importance import effect

# --- the evidence rule ----------------------------------------------------------------------------------------------


def test_a_head_emerges_is_pruned_and_re_emerges_at_the_right_steps() -> None:
    run = PlantedHistory()
    events = [
        run.add(step, shares(h23=x))
        for step, x in zip(range(0, 70, 10), (0.01, 0.01, 0.2, 0.2, 0, 0.2, 0), strict=True)
    ]
    assert events == [[], [], ["emerged 2.3"], [], ["pruned 2.3"], ["re-emerged 2.3"], ["pruned 2.3"]]
    assert state_labels(run.history, 2, 3) == [
        "inactive",
        "inactive",
        "emerged",
        "emerged",
        "pruned",
        "re-emerged",
        "pruned",
    ]
    emerged, pruned, back, _ = run.history.events
    assert emerged.share_before == pytest.approx(0.01, abs=0.01)  # at base
    assert emerged.share_now == pytest.approx(0.2, abs=0.01)
    assert pruned.share_before == emerged.share_now  # compared with when it emerged
    assert back.share_before == pruned.share_now  # and with when it was pruned
    for event in run.history.events:
        assert event.p_value is not None
        assert event.q_value is not None
        assert 0.0 <= event.p_value <= event.q_value <= 0.01
        assert (event.family, event.rule) == ("addition", "evidence")


def test_a_base_head_is_dropped_and_returns_as_retained() -> None:
    run = PlantedHistory(seed=1)
    events = [run.add(step, shares(h00=x)) for step, x in enumerate((0.3, 0.3, 0.0, 0.0, 0.3, 0.0))]
    assert events == [[], [], ["dropped 0.0"], [], ["returned 0.0"], ["dropped 0.0"]]
    assert state_labels(run.history, 0, 0) == ["base", "retained", "dropped", "dropped", "retained", "dropped"]
    assert run.history.newly_active() == [0] * 6  # the base model had it
    assert run.history.cohorts() == {}
    spells = [(s.number, s.start, s.end, s.base) for s in run.history.spells() if (s.layer, s.head) == (0, 0)]
    assert spells == [(1, 0, 2, True), (2, 4, 5, True)]


def test_identical_scores_are_no_event() -> None:
    """A learning rate of 0: every probe is the base probe again."""
    run = PlantedHistory(seed=2, noise=0.0)
    for step in range(8):
        assert run.add(step, BASE) == []
    assert (run.history.q_value == 1.0).all()
    assert not (run.history.strengthened | run.history.weakened).any()
    assert (run.history.state[1:] == np.where(run.history.member[0], HeadState.RETAINED, HeadState.INACTIVE)).all()


@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_noise_changes_membership_without_an_event(tails: str) -> None:
    events, crossings = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = np.exp(-np.arange(100) / 12.0).reshape(10, 10) * rng.choice([-0.05, 0.1], (10, 10))
        gap = -5.0 * np.exp(0.3 * rng.standard_normal(24))
        history = HeadHistory(10, 10)
        for step in range(6):
            drift = rng.standard_normal((24, 10, 10)) if tails == "normal" else rng.standard_t(3, (24, 10, 10))
            history.add(step, gap[:, None, None] * (truth + 0.05 * drift), 0 * gap, gap)
        events += len(history.events)
        crossings += int((history.member[1:] ^ history.member[:-1]).sum())
    assert events <= 1  # 50 probes with nothing to find
    assert crossings > 100


def test_a_smaller_metric_gap_alone_is_no_event() -> None:
    """Raw scores fall to 0.4 with the gap, shares stay."""
    run = PlantedHistory(seed=3)
    for step, size in enumerate((1.0, 0.8, 0.6, 0.4)):
        assert run.add(step, BASE, size=size) == []
    assert np.abs(run.history.raw[-1] - run.history.raw[0])[0, 0] > 0.5 * np.abs(run.history.raw[0, 0, 0])
    np.testing.assert_allclose(run.history.share[-1], run.history.share[0], atol=0.01)
    np.testing.assert_allclose(
        np.array(run.history.metric_gap) / run.history.metric_gap[0], [1, 0.8, 0.6, 0.4], rtol=1e-6
    )


def test_membership_without_evidence_keeps_state_and_spell() -> None:
    """An emerged head leaves the set, but not materially weaker than when it emerged: not pruned."""
    run = PlantedHistory(seed=4, noise=0.0005, settings=EvidenceSettings(keep=0.8, min_change=0.05))
    run.add(0, BASE)
    assert run.add(1, shares(h23=0.125)) == ["emerged 2.3"]
    assert run.add(2, shares(h23=0.10)) == []
    history = run.history
    assert history.member[:, 2, 3].tolist() == [False, True, False]
    assert history.active[:, 2, 3].tolist() == [False, True, True]
    assert state_labels(history, 2, 3)[-1] == "emerged"
    # The base head 2.0 made room for it and came back, and was neither dropped nor returned.
    assert history.member[:, 2, 0].tolist() == [True, False, True]
    assert history.active[:, 2, 0].all()
    assert all(spell.end is None for spell in history.spells())


def test_a_change_of_share_without_crossing_the_edge_is_no_event() -> None:
    run = PlantedHistory(seed=16)
    run.add(0, BASE)
    assert run.add(1, shares(h23=0.04)) == []  # stronger, and still outside the set
    assert run.history.strengthened[1, 2, 3]
    assert not run.history.member[1, 2, 3]
    assert run.add(2, shares(h23=0.25)) == ["emerged 2.3"]
    assert run.add(3, shares(h23=0.15)) == []  # weaker than when it emerged, and still inside
    assert run.history.member[3, 2, 3]
    assert run.add(4, shares(h00=0.22)) == ["pruned 2.3"]
    assert run.history.weakened[4, 0, 0]  # the base head 0.0 too, and inside
    assert state_labels(run.history, 0, 0) == ["base", *["retained"] * 4]


def test_coming_back_to_the_base_share_is_no_emergence() -> None:
    """Pruned below its base share, then back at it, inside a set that has become smaller."""
    run = PlantedHistory(seed=17, noise=0.001, settings=EvidenceSettings(keep=0.8))
    run.add(0, shares(h23=0.115))
    assert run.add(1, shares(h23=0.25)) == ["emerged 2.3"]
    assert run.add(2, shares(h23=0.0)) == ["pruned 2.3"]
    run.add(3, shares(h23=0.115, h20=0.0, h10=0.15, h00=0.25))
    assert run.history.member[:, 2, 3].tolist() == [False, True, False, True]
    assert state_labels(run.history, 2, 3)[-1] == "pruned"
    assert run.add(4, shares(h23=0.2, h20=0.0)) == ["re-emerged 2.3"]


def test_falling_back_to_the_base_share_is_no_drop() -> None:
    """A base head that returned stronger than ever, then at its base share again, outside a smaller set."""
    run = PlantedHistory(seed=18, noise=0.001, settings=EvidenceSettings(keep=0.8))
    events = [run.add(step, shares(h20=x)) for step, x in enumerate((0.12, 0.0, 0.25))]
    assert events == [[], ["dropped 2.0"], ["returned 2.0"]]
    assert run.add(3, shares(h23=0.14)) == ["emerged 2.3"]
    assert not run.history.member[3, 2, 0]
    assert state_labels(run.history, 2, 0)[-1] == "retained"


@pytest.mark.parametrize("weights", ["equal", "size"])
@pytest.mark.parametrize(("gain", "expected"), [(0.003, []), (0.03, ["emerged 2.3"])], ids=["0.3 %", "3 %"])
def test_a_change_too_small_to_matter_is_no_event(gain: float, expected: list[str], weights: str) -> None:
    """A head just outside the set enters it with a tiny p; 0.3 % of the total is not material."""
    run = PlantedHistory(seed=5, noise=1e-5, settings=EvidenceSettings(keep=0.8, weights=weights))
    run.taste[:] = 0.0
    run.add(0, shares(h23=0.119))
    assert run.add(1, shares(h23=0.119 + gain)) == expected
    assert run.history.member[:, 2, 3].tolist() == [False, True]
    assert run.history.change().p_value[1, 2, 3] < 1e-6
    assert run.history.q_value[1, 2, 3] < 1e-6


def test_states_follow_the_allowed_transitions() -> None:
    allowed = {
        ("inactive", "emerged"),
        ("base", "retained"),
        ("base", "dropped"),
        ("retained", "dropped"),
        ("dropped", "retained"),
        ("emerged", "pruned"),
        ("pruned", "re-emerged"),
        ("re-emerged", "pruned"),
    }
    run = PlantedHistory(seed=6)
    rng = np.random.default_rng(6)
    for step in range(40):
        run.add(step, BASE if step == 0 else rng.permutation(BASE.ravel()).reshape(L, H))
    seen = set()
    for layer, head in np.ndindex(L, H):
        labels = state_labels(run.history, layer, head)
        seen |= {(a, b) for a, b in itertools.pairwise(labels) if a != b}
        events = {e.step: e.kind for e in run.history.events if (e.layer, e.head) == (layer, head)}
        changes = {
            step: "returned" if (a, b) == ("dropped", "retained") else b
            for step, (a, b) in enumerate(itertools.pairwise(labels), start=1)
            if a != b and (a, b) != ("base", "retained")
        }
        assert events == changes
    assert seen == allowed


def test_derived_numbers_agree_with_the_states() -> None:
    run = PlantedHistory(seed=7)
    rng = np.random.default_rng(7)
    steps = [5 * step for step in range(25)]
    for step in steps:
        run.add(step, BASE if step == 0 else rng.permutation(BASE.ravel()).reshape(L, H))
    history = run.history
    counts = history.counts()
    assert list(counts) == [s.label for s in HeadState]
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == [L * H] * 25
    newly = np.array(counts["emerged"]) + counts["re-emerged"]
    assert history.newly_active() == newly.tolist()
    assert np.sum(list(history.cohorts().values()), axis=0).tolist() == newly.tolist()
    for first, active in history.cohorts().items():
        assert active[: steps.index(first)] == [0] * steps.index(first)
        born = {(e.layer, e.head) for e in history.events if e.kind == "emerged" and e.step == first}
        assert active[steps.index(first)] == len(born) > 0
    assert (history.active == is_in(history.state, ACTIVE)).all()
    np.testing.assert_allclose(history.activation_frequency(), history.active.mean(axis=0))
    length = sum((steps.index(s.end) if s.end is not None else 25) - steps.index(s.start) for s in history.spells())
    assert length == history.active.sum()
    assert history.effect().min() >= -1.0
    assert history.effect().max() <= 1.0
    np.testing.assert_allclose(history.importance.sum(axis=(1, 2)), 1.0)
    latest = history.latest_scalars()
    assert latest["active"] == history.active[-1].sum() == latest["retained"] + latest["newly_active"]
    assert sum(n for name, n in latest.items() if name.startswith("cohort/")) == latest["newly_active"]
    assert latest["events"] == sum(e.step == steps[-1] for e in history.events)


# --- signal ---------------------------------------------------------------------------------------------------------


def test_a_probe_without_signal_repeats_the_states() -> None:
    run = PlantedHistory(seed=8)
    run.add(0, BASE)
    run.add(10, shares(h23=0.2))
    nothing = run.rng.standard_normal(N)
    assert run.history.add(20, run.scores(BASE), nothing, nothing + 0.01 * run.rng.standard_normal(N)) == []
    assert run.add(30, shares(h23=0.0)) == ["pruned 2.3"]
    assert run.history.signal == ["ok", "ok", "insufficient signal", "ok"]
    assert np.isnan(run.history.share[2]).all()
    assert np.isfinite(run.history.raw[2]).all()
    assert (run.history.state[2] == run.history.state[1]).all()
    assert np.isfinite(run.history.effect()).all()


def test_the_base_is_the_first_probe_with_signal() -> None:
    run = PlantedHistory(seed=9)
    nothing = run.rng.standard_normal(N)
    assert run.history.add(0, run.scores(BASE), nothing, nothing) == []
    assert run.history.base_step is None
    assert run.add(10, BASE) == []
    assert run.add(20, shares(h23=0.2)) == ["emerged 2.3"]
    assert run.history.base_step == 10
    assert run.history.counts()["base"] == [0, 4, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_insufficient_signal(bad: float) -> None:
    run = PlantedHistory(seed=10)
    run.add(0, BASE)
    scores = run.scores(BASE)
    scores[3] = bad
    assert run.history.add(1, scores, 0 * run.gap, run.gap) == []
    assert run.history.add(2, run.scores(BASE), 0 * run.gap, run.gap * bad) == []
    assert run.history.signal[1:] == ["insufficient signal"] * 2
    run.history.latest_scalars()


def test_too_few_pairs_are_insufficient_signal() -> None:
    run = PlantedHistory(seed=11, n_pairs=4)
    run.add(0, BASE)
    run.add(1, shares(h23=0.3))
    assert run.history.signal == ["insufficient signal"] * 2
    assert run.history.events == []


# --- the circuit rule -----------------------------------------------------------------------------------------------


def test_the_circuit_rule_is_plain_membership() -> None:
    rng = np.random.default_rng(12)
    active = rng.random((15, L, H)) < 0.5
    importance = rng.random((15, L, H)) * active
    history = HeadHistory(L, H, rule="circuit", family="recall")
    events = [
        e
        for step in range(15)
        for e in history.add_membership(step, active[step], importance[step], active[step] * 0.75)
    ]
    assert (history.active == active).all()
    assert (history.member == active).all()
    assert len(events) == (active[1:] ^ active[:-1]).sum()
    base = active[0]
    for step in range(1, 15):
        now = active[step]
        ever = active[: step + 1].any(axis=0)
        twice = (np.diff(np.pad(active[: step + 1].astype(int), ((1, 0), (0, 0), (0, 0))), axis=0) == 1).sum(axis=0) > 1
        for name, where in (
            ("inactive", ~base & ~ever),
            ("retained", base & now),
            ("dropped", base & ~now),
            ("emerged", ~base & now & ~twice),
            ("re-emerged", ~base & now & twice),
            ("pruned", ~base & ~now & ever),
        ):
            assert history.counts()[name][step] == where.sum()
    for event in events:
        assert (event.rule, event.p_value, event.q_value) == ("circuit", None, None)
        assert event.stability == (0.75 if active[event.step, event.layer, event.head] else 0.0)
    expected = [effect(i / i.sum(), importance[0] / importance[0].sum()) for i in importance[1:]]
    np.testing.assert_allclose(history.effect(), np.mean(expected, axis=0), atol=1e-6)


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_are_named(tmp_path: Path) -> None:
    run = PlantedHistory(seed=15)
    run.add(10, BASE)
    for step in (10, 5):
        with pytest.raises(UserError, match=f"step {step} after step 10"):
            run.add(step, BASE)
    with pytest.raises(UserError, match="3 layers x 4 heads"):
        run.history.add(20, np.zeros((N, 4, 3)), run.gap, run.gap)
    with pytest.raises(UserError, match=r"31 pairs.*32"):
        run.history.add(20, run.scores(BASE)[1:], run.gap[1:], 0 * run.gap[1:])
    with pytest.raises(UserError, match=r"\[N, L, H\]"):
        run.history.add(20, run.scores(BASE)[1:], run.gap, 0 * run.gap)
    with pytest.raises(UserError, match="evidence rule"):
        run.history.add_membership(20, np.ones((L, H)), np.ones((L, H)))
    with pytest.raises(UserError, match="circuit rule"):
        HeadHistory(L, H, rule="circuit").add(0, run.scores(BASE), run.gap, 0 * run.gap)
    with pytest.raises(UserError, match="rule='paper'"):
        HeadHistory(L, H, rule="paper")
    with pytest.raises(UserError, match="group='all'"):
        run.history.survival("all")
    assert len(run.history.steps) == 1  # nothing of what failed was kept
    folder = write_synthetic_run(tmp_path, steps=[0, 10])
    with pytest.raises(UserError, match=r"family='carry'.*addition, recall"):
        HeadHistory.from_run(folder, "carry")


def test_an_empty_history_has_empty_results() -> None:
    history = HeadHistory(L, H)
    assert history.share.shape == history.state.shape == (0, L, H)
    assert history.counts()["emerged"] == []
    assert history.cohorts() == {}
    assert history.spells() == []
    assert history.activation_frequency().shape == history.effect().shape == (L, H)
    assert np.isnan(history.median_spell())
    assert history.latest_scalars() == {}


def test_in_a_notebook(tmp_path: Path) -> None:
    history = HeadHistory.from_run(write_synthetic_run(tmp_path, n_pairs=16, steps=(0, 20, 40)), family="addition")
    counts = history.counts()
    shown = repr(history)
    assert shown.startswith("HeadHistory(addition by the evidence rule, 3 probes, steps 0 to 40; now ")
    assert f"{counts['emerged'][-1]} emerged" in shown
    assert len(shown) < 200
    pytest.importorskip("pandas")
    table = history.to_pandas()
    assert len(table) == 3 * history.total_heads
    row = table[(table["step"] == 40) & (table["head"] == "L1.H2")].iloc[0]
    assert (row["layer"], row["index"]) == (1, 2)
    assert row["share"] == history.share[-1, 1, 2]
    assert row["state"] == HeadState(history.state[-1, 1, 2]).label
    assert [(table["step"] == step).sum() for step in history.steps] == [history.total_heads] * 3
    assert (table[table["step"] == 40]["state"] == "emerged").sum() == counts["emerged"][-1]
