"""The running summary equals what the states of all probes give, also while events are pending; snapshots stay."""

import numpy as np
import pytest
from helpers.planted_history import BASE, PlantedHistory, shares

from headwatch.lives.history import HeadHistory
from headwatch.stats import EvidenceSettings
from headwatch.stats.importance import entropy, intensity, kurtosis


def from_all_probes(history: HeadHistory) -> dict[str, float]:
    """`latest_scalars` by its definitions over the arrays of all probes."""
    counts = {label.replace("-", "_"): n[-1] for label, n in history.counts().items()}
    counts["retained"] += counts.pop("base")
    band = history.null_band[-1]
    return {
        "active": int(history.active[-1].sum()),
        "newly_active": history.newly_active()[-1],
        **counts,
        "events": sum(event.step == history.steps[-1] for event in history.events),
        "median_spell": history.median_spell(),
        "turnover": history.turnover()[-1],
        "persistence": history.persistence(),
        "emergence_centre": history.emergence_centre(),
        **{f"cohort/{first}": n[-1] for first, n in history.cohorts().items()},
        "importance_entropy": entropy(history.importance[-1]),
        "importance_kurtosis": kurtosis(history.importance[-1]),
        "strengthened": int(history.strengthened[-1].sum()),
        "weakened": int(history.weakened[-1].sum()),
        "pending": len(history.pending),
        "detectable": history.n_detectable()[-1],
        "importance_intensity": intensity(history.raw[-1]),
        "metric_gap": history.metric_gap[-1],
        "split_half_agreement": history.split_half[-1],
        "membership_changes": history.membership_changes()[-1],
        **({} if band is None else {"membership_changes_by_chance": band.median}),
        "signal": float(history.signal[-1] == "ok"),
    }


@pytest.mark.parametrize("confirm", ["next", "level", "either", "none"])
def test_latest_scalars_follow_from_all_probes(confirm: str) -> None:
    run = PlantedHistory(seed=5, settings=EvidenceSettings(confirm=confirm))
    rng = np.random.default_rng(6)
    for probe in range(18):
        share = BASE if probe == 0 else shares(h23=0.2 * (probe % 8 < 4), h12=0.2 * rng.integers(2))
        gap = 0.0 if probe in (9, 10) else 1.0  # two probes without signal, perhaps with events pending
        clean = -0.5 * run.gap * gap
        run.history.add(10 * probe, run.scores(share) * gap, clean, clean + run.gap * gap)
        latest = run.history.latest_scalars()
        assert latest.keys() == from_all_probes(run.history).keys()
        np.testing.assert_equal(latest, from_all_probes(run.history))
    kinds = {event.kind for event in run.history.events}
    assert {"emerged", "pruned"} <= kinds


def test_a_snapshot_keeps_its_states() -> None:
    run = PlantedHistory(seed=1, settings=EvidenceSettings(confirm="next"))
    clean = -0.5 * run.gap
    taken: list[tuple[HeadHistory, np.ndarray, int]] = []
    for step, share in enumerate([BASE, shares(h23=0.2), shares(h23=0.2), BASE, BASE]):
        run.history.add(10 * step, run.scores(share), clean, clean + run.gap)
        snapshot = run.history.snapshot()
        taken.append((snapshot, snapshot.state.copy(), len(snapshot.events)))
    assert (run.history.state[1] != taken[1][1][1]).any()  # an event confirmed later changed this probe's states
    for snapshot, state, events in taken:
        assert (snapshot.state == state).all()
        assert len(snapshot.events) == events
