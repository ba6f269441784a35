"""Events under each correction over probes, their evidence, and equality of disk and memory."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.planted_history import BASE, PlantedHistory, shares, state_labels
from helpers.planted_history import H as N_HEADS
from helpers.planted_history import L as N_LAYERS
from helpers.planted_history import N as N_PAIRS

from headwatch.errors import UserError
from headwatch.lives.events import Event
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import HeadState
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.run_folder import RunFolder
from headwatch.stats import EvidenceSettings

NEXT = EvidenceSettings(confirm="next")


def add(run: PlantedHistory, step: int, share: np.ndarray) -> list[str]:
    """Add a probe; returns its events with their status and the step that found each first."""
    before = len(run.history.steps)
    clean = -0.5 * run.gap
    events = run.history.add(step, run.scores(share), clean, clean + run.gap)
    assert len(run.history.steps) == before + 1
    return [f"{e.status} {e.kind} {e.layer}.{e.head} at {e.step}" for e in events]


def test_a_pending_event_keeps_its_first_step_when_confirmed() -> None:
    run = PlantedHistory(seed=1, settings=NEXT)
    assert add(run, 0, BASE) == []
    assert add(run, 10, shares(h23=0.2)) == ["pending emerged 2.3 at 10"]
    assert state_labels(run.history, 2, 3) == ["inactive", "inactive"]
    assert run.history.latest_scalars()["pending"] == 1
    assert add(run, 20, shares(h23=0.2)) == ["confirmed emerged 2.3 at 10"]
    assert state_labels(run.history, 2, 3) == ["inactive", "emerged", "emerged"]
    assert run.history.cohorts() == {10: [0, 1, 1]}
    assert add(run, 30, shares(h23=0.0)) == ["pending pruned 2.3 at 30"]
    assert add(run, 40, shares(h23=0.0)) == ["confirmed pruned 2.3 at 30"]
    assert add(run, 50, shares(h23=0.2, h00=0.0)) == ["pending dropped 0.0 at 50", "pending re-emerged 2.3 at 50"]
    history = run.history
    assert [(e.kind, e.step, e.status, e.settled_at) for e in history.events] == [
        ("emerged", 10, "confirmed", 20),
        ("pruned", 30, "confirmed", 40),
        ("dropped", 50, "pending", None),
        ("re-emerged", 50, "pending", None),
    ]
    assert [(s.start, s.end) for s in history.spells() if (s.layer, s.head) == (2, 3)] == [(10, 30)]
    assert history.events[1].share_before == history.events[0].share_now  # the mark is the probe that found it first


def test_an_event_that_the_next_probe_does_not_find_is_withdrawn() -> None:
    run = PlantedHistory(seed=2, settings=NEXT)
    for step, x in ((0, 0.01), (10, 0.2)):
        add(run, step, shares(h23=x))
    assert add(run, 20, shares(h23=0.01)) == ["withdrawn emerged 2.3 at 10"]
    assert run.history.events == run.history.pending == []
    assert [e.step for e in run.history.withdrawn] == [10]
    assert state_labels(run.history, 2, 3) == ["inactive"] * 3
    assert add(run, 30, shares(h23=0.2)) == ["pending emerged 2.3 at 30"]


def test_an_event_at_the_strict_level_is_confirmed_at_once() -> None:
    """Third probe after the base: q <= 0.01 / 12 is confirmed at once, q <= 0.01 is pending."""
    run = PlantedHistory(seed=8, noise=0.15, settings=EvidenceSettings(confirm="either"))
    run.rng = np.random.default_rng(3)
    for step in range(3):
        add(run, step, BASE)
    events = [add(run, 3, shares(h23=0.15, h13=0.3)), add(run, 4, shares(h23=0.15, h13=0.3))]
    levels = {(e.layer, e.head): (e.level, e.q_value) for e in run.history.events}
    assert "confirmed emerged 1.3 at 3" in events[0]
    assert levels[1, 3][1] <= levels[1, 3][0] == pytest.approx(0.01 / 12)
    assert "pending emerged 2.3 at 3" in events[0]
    assert "confirmed emerged 2.3 at 3" in events[1]
    assert 0.01 / 12 < levels[2, 3][1] <= levels[2, 3][0] == 0.01
    assert (run.history.state[3:, [1, 2], 3] == HeadState.EMERGED).all()


def test_a_base_head_lost_at_the_first_probe_is_dropped_there() -> None:
    run = PlantedHistory(seed=3, settings=NEXT)
    for step in (0, 1, 2):
        add(run, step, shares(h00=0.3 if step == 0 else 0.0))
    assert state_labels(run.history, 0, 0) == ["base", "dropped", "dropped"]


def test_a_probe_without_signal_leaves_events_pending() -> None:
    run = PlantedHistory(seed=4, settings=NEXT)
    add(run, 0, BASE)
    add(run, 1, shares(h23=0.2))
    nothing = run.rng.standard_normal(N_PAIRS)
    assert run.history.add(2, run.scores(BASE), nothing, nothing) == []
    assert len(run.history.pending) == 1
    assert add(run, 3, shares(h23=0.2)) == ["confirmed emerged 2.3 at 1"]
    assert state_labels(run.history, 2, 3) == ["inactive", "emerged", "emerged", "emerged"]


@pytest.mark.parametrize("confirm", ["either", "level", "next", "none"])
def test_disk_and_memory_are_equal_after_every_probe(confirm: str, tmp_path: Path) -> None:
    run = PlantedHistory(seed=5, settings=EvidenceSettings(confirm=confirm))
    folder = RunFolder.create(tmp_path, manifest(confirm))
    rng = np.random.default_rng(5)
    seen = set()
    for step in range(0, 120, 10):
        share = BASE if step == 0 else rng.permutation(BASE.ravel()).reshape(BASE.shape)
        clean = -0.5 * run.gap
        scores = run.scores(share)
        folder.append_events(run.history.add(step, scores, clean, clean + run.gap))
        folder.write_scores(step, ProbeScores(scores, clean, clean + run.gap))
        read = HeadHistory.from_run(tmp_path)
        assert read.events == run.history.events == folder.events()
        np.testing.assert_array_equal(read.state, run.history.state)
        seen |= {event.status for event in read.events}
    assert seen == ({"confirmed", "pending"} if confirm == "next" else {"confirmed"})
    lines = [json.loads(line)["step"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines == sorted(lines)  # a log's steps never go back
    # A resumed run cuts the lines of later probes, and the event is pending again.
    folder.cut_after(50)
    assert folder.events() == HeadHistory.from_run(tmp_path).events


def test_every_event_carries_its_evidence() -> None:
    run = PlantedHistory(seed=6)
    add(run, 0, BASE)
    add(run, 1, BASE)
    add(run, 2, shares(h23=0.2))
    (event,) = run.history.events
    history = run.history
    assert event.difference == pytest.approx(event.share_now - event.share_before)
    assert event.lower < event.difference < event.upper
    assert event.lower < 0.19 < event.upper
    assert event.q_value <= event.level == pytest.approx(0.01 / 6)  # the second probe after the base
    assert event.raw_now == pytest.approx(history.raw[2, 2, 3])
    assert event.raw_before == pytest.approx(history.raw[0, 2, 3])
    assert event.raw_p < 1e-6
    assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event


def test_lines_of_earlier_versions_are_read() -> None:
    line = {"step": 7, "family": "carry", "layer": 1, "head": 2, "kind": "pruned", "share_before": 0.2}
    old = Event.from_json({**line, "share_now": 0.0, "p_value": 1e-6, "q_value": 1e-4, "rule": "evidence"})
    assert (old.step, old.status, old.difference, old.settled_at) == (7, "confirmed", None, None)


def test_changes_are_given_against_base_and_previous_probe() -> None:
    run = PlantedHistory(seed=7)
    for step, x in ((0, 0.01), (1, 0.2), (2, 0.2)):
        run.add(step, shares(h23=x), size=1.0 if step < 2 else 0.5)
    history = run.history
    base, previous = history.change("share"), history.change("share", since="previous")
    assert base.difference.shape == (3, N_LAYERS, N_HEADS)
    assert np.isnan(base.p_value[0]).all()
    np.testing.assert_allclose(base.difference[2], history.share[2] - history.share[0])
    np.testing.assert_allclose(previous.difference[2], history.share[2] - history.share[1])
    assert base.q_value[2, 2, 3] < 1e-4
    assert previous.q_value[2, 2, 3] > 0.01
    raw = history.change("raw", since="previous")
    np.testing.assert_allclose(raw.difference[2], history.raw[2] - history.raw[1])
    assert raw.q_value[2, 0, 0] < 1e-4  # the whole task shrank: every raw score did, and no share
    assert previous.q_value[2, 0, 0] > 0.01
    importance = history.change("importance")
    np.testing.assert_allclose(importance.difference[1], history.importance[1] - history.importance[0])
    assert importance.interval()[0][1, 2, 3] > 0.0
    with pytest.raises(UserError, match="of='circuit'"):
        history.change("circuit")


def manifest(confirm: str) -> dict[str, object]:
    return {
        "settings": {"evidence": vars(EvidenceSettings(confirm=confirm))},
        "model": {"n_layers": N_LAYERS, "n_heads": N_HEADS},
        "probes": {"families": ["addition"], "n_pairs": N_PAIRS, "fingerprint": "0"},
    }
