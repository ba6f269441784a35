"""Histories rebuilt from run folders: the recorded events, and the effects planted in the synthetic run."""

import itertools
from pathlib import Path

import pytest
from helpers.synthetic_runs import planted, write_synthetic_run

from headwatch import HeadHistory
from headwatch.record.replay import histories_from_run
from headwatch.record.run_folder import RunFolder
from headwatch.stats import EvidenceSettings, carrying_set


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_rebuilt_history_has_the_recorded_events(kind: str, tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path, kind=kind, seed=3)
    for family, rule in itertools.product(run.families, ("evidence", "circuit")):
        history = HeadHistory.from_run(tmp_path, family, rule)
        assert history.family == family
        assert history.steps == run.steps
        logged = [e for e in run.events() if (e.family, e.rule) == (family, rule)]
        assert logged == history.events
    first = HeadHistory.from_run(run)
    assert first.family == run.families[0]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_planted_heads_are_found(kind: str, tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path, kind=kind, seed=4)
    _, moved = planted(8, 6, 2, 4)
    for family, heads in zip(run.families, moved, strict=True):
        history = HeadHistory.from_run(run, family)
        assert {(e.layer, e.head) for e in history.events} <= set(heads)
        emerged = {(e.layer, e.head) for e in history.events if e.kind == "emerged"}
        if kind == "sft":
            assert emerged == set(heads[:5])
            assert not any(e.kind == "pruned" for e in history.events)
        else:
            assert emerged >= set(heads[:4])
            assert history.coupling(run.training()).rho > 0.3
            again = [(e.layer, e.head) for e in history.events if e.kind == "re-emerged"]
            assert again == [heads[1]]


def test_settings_of_the_manifest_are_used(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path, steps=range(0, 31, 10))
    default = HeadHistory.from_run(run)
    run.update_manifest(settings={"evidence": {"carry": 0.5, "keep": 0.6, "unknown": 1}})
    narrow = HeadHistory.from_run(run)
    assert narrow.settings == EvidenceSettings(carry=0.5, keep=0.6)
    assert (narrow.member[0] == carrying_set(narrow.share[0], 0.5)).all()
    assert narrow.member[0].sum() < default.member[0].sum()
    assert HeadHistory.from_run(run, settings=EvidenceSettings()).settings == EvidenceSettings()


def test_several_histories_read_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_synthetic_run(tmp_path, steps=range(0, 31, 10))
    read, correct = [], []
    original = RunFolder.read_scores
    monkeypatch.setattr(RunFolder, "read_scores", lambda self, step: read.append(step) or original(self, step))
    rules = dict.fromkeys(run.families, ("evidence", "circuit"))
    found = histories_from_run(run, rules, lambda family, values: correct.append((family, len(values))))
    assert read == run.steps == [0, 10, 20, 30]
    assert correct == [(family, len(run.pairs_of(family))) for _ in run.steps for family in run.families]
    for (family, rule), history in found.items():
        assert history.events == HeadHistory.from_run(run, family, rule).events
        assert (history.state == HeadHistory.from_run(run, family, rule).state).all()
