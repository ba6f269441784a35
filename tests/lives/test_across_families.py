"""Lives of several families side by side, against what was planted in each."""

import pytest
from test_history import BASE, Run, shares

from headwatch.errors import UserError
from headwatch.lives.across_families import combined, combined_lives
from headwatch.lives.history import HeadHistory


def two_families() -> dict[str, HeadHistory]:
    """2.3 emerges in both, a probe apart, and is pruned in one; 0.0 is dropped in the other alone."""
    plans = {
        "addition": [BASE, shares(h23=0.2), shares(h23=0.2), shares(h23=0.0)],
        "recall": [BASE, BASE, shares(h23=0.2), shares(h23=0.2, h00=0.0)],
    }
    found = {}
    for seed, (family, plan) in enumerate(plans.items()):
        run = Run(seed=seed)
        run.history.family = family
        for step, share in enumerate(plan):
            run.add(10 * step, share)
        found[family] = run.history
    return found


def test_an_event_names_its_families() -> None:
    told = combined(two_families())
    assert [(e.kind, e.layer, e.head, e.step, e.families, e.silent) for e in told] == [
        ("emerged", 2, 3, 10, ("addition", "recall"), ()),
        ("dropped", 0, 0, 30, ("recall",), ("addition",)),
        ("pruned", 2, 3, 30, ("addition",), ("recall",)),
    ]
    assert [e.step for e in told[0].events] == [10, 20]
    assert told[0].events[0].difference != told[0].events[1].difference  # each keeps its own evidence


def test_a_head_has_a_life_in_each_family() -> None:
    lives = {(life.layer, life.head): life for life in combined_lives(two_families().values())}
    assert lives[2, 3].states == {"addition": "pruned", "recall": "emerged"}
    assert lives[2, 3].emerged == ("addition", "recall")
    assert lives[2, 3].active == ("recall",)
    assert lives[0, 0].in_base == ("addition", "recall")
    assert lives[0, 0].active == ("addition",)
    assert set(lives) == {(0, 0), (0, 1), (1, 0), (2, 0), (2, 3)}


def test_the_family_that_was_first_is_named_first() -> None:
    told = two_families()
    for events in (combined(told), combined({"recall": told["recall"], "addition": told["addition"]})):
        assert events[0].families == ("addition", "recall")
        assert [event.step for event in events[0].events] == [10, 20]
        assert events[0].step == 10


def test_second_times_join_second_times() -> None:
    run, other = Run(seed=5), Run(seed=6)
    other.history.family = "recall"
    for step, x in enumerate((0.01, 0.2, 0.0, 0.2, 0.0)):
        run.add(step, shares(h23=x))
        other.add(step, shares(h23=x if step < 3 else 0.0))
    told = [(e.kind, e.number, e.families) for e in combined([run.history, other.history])]
    assert told == [
        ("emerged", 1, ("addition", "recall")),
        ("pruned", 1, ("addition", "recall")),
        ("re-emerged", 1, ("addition",)),
        ("pruned", 2, ("addition",)),
    ]


def test_what_cannot_be_put_side_by_side_is_refused() -> None:
    assert combined([]) == combined_lives([]) == []
    with pytest.raises(UserError, match="one history for each family"):
        combined([HeadHistory(2, 2, family="carry"), HeadHistory(2, 2, family="carry")])
    with pytest.raises(UserError, match="different rules or models"):
        combined([HeadHistory(2, 2, family="carry"), HeadHistory(2, 3, family="recall")])
