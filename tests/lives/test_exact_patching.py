"""Events with the patched shares of their heads, and the verdict of patching on them."""

import numpy as np
import pytest
from helpers.planted_history import H, L, PlantedHistory, shares
from scipy.stats import ttest_rel

from headwatch.lives.events import Event
from headwatch.lives.exact_patching import PatchedShares, with_patching
from headwatch.lives.history import HeadHistory
from headwatch.report.sentences import summary
from headwatch.stats import EvidenceSettings

N_PAIRS = 32
GAP = -5.0 * np.ones(N_PAIRS)
NOISE = 0.01 * np.random.default_rng(0).standard_normal((2, N_PAIRS))

NOISE -= NOISE.mean(axis=1, keepdims=True)


def patched(value: float, noise: np.ndarray = NOISE[0]) -> PatchedShares:
    """One head, 1.2, whose exact effect is this share of the gap."""
    effects = np.full((N_PAIRS, 2, 3), np.nan)
    effects[:, 1, 2] = GAP * (value + noise)
    return PatchedShares.of(effects, np.zeros(N_PAIRS), GAP)


def event(before: float, now: float, kind: str = "emerged") -> Event:
    return Event(10, "addition", 1, 2, kind, before, now)


@pytest.mark.parametrize(
    ("estimated", "exact", "verdict"),
    [
        ((0.0, 0.1), (0.0, 0.08), "supports"),
        ((0.1, 0.0), (0.2, 0.12), "supports"),
        ((0.0, 0.1), (0.0, 0.002), "same sign"),
        ((0.0, 0.1), (0.08, 0.0), "contradicts"),
        ((-0.1, 0.0), (0.1, 0.0), "contradicts"),
        ((0.0, -0.1), (0.0, -0.1), "supports"),
    ],
)
def test_verdict_from_the_paired_change(
    estimated: tuple[float, float], exact: tuple[float, float], verdict: str
) -> None:
    before, now = patched(exact[0]), patched(exact[1], NOISE[1])
    found = with_patching(event(*estimated), before, now, EvidenceSettings(test="t"))
    assert found.patching == verdict
    assert found.patched_before == pytest.approx(exact[0] + NOISE[0].mean())
    assert found.patched_now == pytest.approx(exact[1] + NOISE[1].mean())
    assert found.patched_p == pytest.approx(ttest_rel(exact[0] + NOISE[0], exact[1] + NOISE[1]).pvalue)


@pytest.mark.parametrize(
    ("kind", "now", "verdict"),
    [("emerged", 0.05, "same sign"), ("returned", -0.05, "contradicts"), ("dropped", 0.05, None)],
)
def test_without_a_reference_only_signs_are_compared(kind: str, now: float, verdict: str | None) -> None:
    found = with_patching(event(0.0, 0.1, kind), None, patched(now), EvidenceSettings())
    assert (found.patched_before, found.patched_p, found.patching) == (None, None, verdict)
    assert found.patched_now == pytest.approx(now + NOISE[0].mean())


def test_a_head_that_was_not_patched_stays_as_it_is() -> None:
    other = Event(10, "addition", 0, 0, "emerged", 0.0, 0.1)
    assert with_patching(other, patched(0.1), patched(0.2), EvidenceSettings()) == other


def effects_of(planted: PlantedHistory, share: np.ndarray, heads: list[tuple[int, int]]) -> tuple[np.ndarray, ...]:
    """Effects of some heads that have exactly these shares, as `add_patched` takes them."""
    effects, exact = np.full((len(planted.gap), L, H), np.nan), planted.scores(share)
    for head in heads:
        effects[:, *head] = exact[:, *head]
    return effects, -0.5 * planted.gap, 0.5 * planted.gap


def test_references_and_confirmation() -> None:
    """An event is compared with the head's event before it; a pending one keeps its patched shares when confirmed."""
    planted = PlantedHistory(settings=EvidenceSettings(confirm="next"))
    history = planted.history
    heads = [(0, 2)]
    planted.add(0, shares())
    assert history.add_patched(*effects_of(planted, shares(), heads)) == []  # the base has no events
    strong = shares(h02=0.3)
    assert planted.add(10, strong) == ["emerged 0.2"]
    (found,) = history.add_patched(*effects_of(planted, strong, heads))
    assert (found.patched_before, found.patched_now) == pytest.approx((0.01, 0.3), abs=0.02)
    assert found.patching == "supports"
    planted.add(20, strong)
    (kept,) = history.events
    assert kept.patched_now == found.patched_now
    planted.add(30, shares())
    (*_, pruned) = history.add_patched(*effects_of(planted, shares(h02=0.2), heads))
    assert pruned.kind == "pruned"
    assert pruned.patched_before == found.patched_now  # not the base's
    assert "Exact patching of the heads of 2 events" in " ".join(summary(history)["sentences"])


def test_an_event_without_patching_in_json() -> None:
    plain = event(0.0, 0.1)
    assert Event.from_json({k: v for k, v in plain.to_json().items() if not k.startswith("patch")}) == plain
    completed = with_patching(plain, patched(0.0), patched(0.1), EvidenceSettings())
    assert Event.from_json(completed.to_json()) == completed


def test_effects_need_the_pairs_of_the_probe() -> None:
    history = HeadHistory(L, H)
    planted = PlantedHistory()
    with pytest.raises(IndexError):
        history.add_patched(*effects_of(planted, shares(), []))
