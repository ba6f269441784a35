"""States of a head, how they follow one another, and what is counted from the states of a run."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

States = NDArray[np.int8]
Bools = NDArray[np.bool_]


class HeadState(IntEnum):
    """State of one head at one probe.

    Attributes:
        INACTIVE: not in the base's active set and never emerged.
        BASE: active at the base probe (the state of that probe only).
        RETAINED: active at the base and now.
        DROPPED: active at the base, not now.
        EMERGED: not active at the base, active now.
        PRUNED: had emerged, not active now.
        REEMERGED: had been pruned, active now.
    """

    INACTIVE = 0
    BASE = 1
    RETAINED = 2
    DROPPED = 3
    EMERGED = 4
    PRUNED = 5
    REEMERGED = 6

    @property
    def label(self) -> str:
        """The word in logs and figures: "re-emerged" for REEMERGED, else the name in lower case."""
        return "re-emerged" if self is HeadState.REEMERGED else self.name.lower()


OF_BASE = (HeadState.BASE, HeadState.RETAINED, HeadState.DROPPED)
ACTIVE = (HeadState.BASE, HeadState.RETAINED, HeadState.EMERGED, HeadState.REEMERGED)
NEWLY_ACTIVE = (HeadState.EMERGED, HeadState.REEMERGED)

_TRANSITIONS = (  # (state, whether the head joins, next state); a base head that stays is retained
    (HeadState.INACTIVE, True, HeadState.EMERGED),
    (HeadState.PRUNED, True, HeadState.REEMERGED),
    (HeadState.DROPPED, True, HeadState.RETAINED),
    (HeadState.BASE, False, HeadState.DROPPED),
    (HeadState.RETAINED, False, HeadState.DROPPED),
    (HeadState.EMERGED, False, HeadState.PRUNED),
    (HeadState.REEMERGED, False, HeadState.PRUNED),
)


# --- one probe ------------------------------------------------------------------------------------------------------


def first_states(member: Bools) -> States:
    """The states at the base probe, [L, H]; member: its active set."""
    return np.where(member, HeadState.BASE, HeadState.INACTIVE).astype(np.int8)


def advance(state: States, joins: Bools, leaves: Bools) -> States:
    """The next states, [L, H]: inactive heads become active where `joins`, active ones inactive where `leaves`."""
    following = np.where(state == HeadState.BASE, HeadState.RETAINED, state)
    for before, joining, after in _TRANSITIONS:
        following = np.where((state == before) & (joins if joining else leaves), after, following)
    return following.astype(np.int8)


def unchanged(state: States) -> States:
    """The next states if no head joins or leaves, [L, H]."""
    no = np.zeros(state.shape, np.bool_)
    return advance(state, no, no)


def changed(before: States, after: States) -> Bools:
    """Where an event happened; base -> retained is none."""
    return (after != before) & ~((before == HeadState.BASE) & (after == HeadState.RETAINED))


def event_kind(before: Any, after: Any) -> str:
    """The name of a change from one state to another."""
    if before == HeadState.DROPPED and after == HeadState.RETAINED:
        return "returned"
    return HeadState(after).label


def is_in(state: NDArray[Any], states: tuple[HeadState, ...]) -> Bools:
    """Where `state` is one of `states`, in the shape of `state`."""
    return np.isin(state, [int(s) for s in states])


# --- all probes: state is [P, L, H] ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spell:
    """One uninterrupted active stretch of a head, in training steps. Both ends are known only to the probe interval.

    Attributes:
        layer: the head's layer.
        head: the head's index in the layer.
        start: step of the first probe at which it is active.
        end: step of the first probe at which it is inactive again; None: still active at `last_seen` (right-censored).
        last_seen: step of the last probe of the run.
        number: 1 for the head's first spell.
        base: whether the head is active at the base, so that the start of its first spell is unknown.
    """

    layer: int
    head: int
    start: int
    end: int | None
    last_seen: int
    number: int
    base: bool

    @property
    def length(self) -> int:
        """Steps from start to end, or to the last probe where it has not ended."""
        return (self.last_seen if self.end is None else self.end) - self.start


def spells(steps: list[int], state: States) -> list[Spell]:
    """All spells of all heads, by layer, head and time; steps: [P]."""
    if not steps:
        return []
    active = is_in(state, ACTIVE)
    edges = np.diff(np.pad(active.astype(np.int8), ((1, 1), (0, 0), (0, 0))), axis=0)  # [P + 1, L, H]
    found = []
    for layer, head in np.argwhere(active.any(axis=0)):
        starts, ends = (np.flatnonzero(edges[:, layer, head] == sign) for sign in (1, -1))
        base = bool(is_in(state[starts[0], layer, head], OF_BASE))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
            ended = steps[end] if end < len(steps) else None
            found.append(Spell(int(layer), int(head), steps[start], ended, steps[-1], number, base))
    return found


def cohorts(steps: list[int], state: States) -> dict[int, list[int]]:
    """Step of first emergence -> how many of those heads are newly active at each probe, [P]; steps: [P]."""
    newly = is_in(state, NEWLY_ACTIVE)
    ever = newly.any(axis=0)
    first = np.argmax(newly, axis=0) if len(steps) else np.zeros(ever.shape, np.int64)
    born = {int(index): ever & (first == index) for index in np.unique(first[ever])}
    return {steps[index]: heads_at(newly & heads) for index, heads in born.items()}


def counts(state: States) -> dict[str, list[int]]:
    """State label -> number of heads in that state at each probe, [P]; they sum to L * H."""
    return {s.label: heads_at(state == s) for s in HeadState}


def gained_and_lost(active: Bools) -> tuple[list[int], list[int]]:
    """Heads that became active and that became inactive since the probe before, [P] each, 0 at the first probe."""
    before, now = active[:-1], active[1:]
    first = [0] * min(1, len(active))
    return first + heads_at(now & ~before), first + heads_at(before & ~now)


def persistence(state: States) -> float:
    """The part of all heads that ever emerged that is active at the last probe; NaN where none has emerged."""
    newly = is_in(state, NEWLY_ACTIVE)
    ever = newly.any(axis=0)
    return float(newly[-1][ever].mean()) if ever.any() else float("nan")


def layer_profile(state: States) -> dict[str, list[int]]:
    """Heads by layer, [L] each: of the base, dropped at the last probe, ever emerged, and of these still active."""
    ever = is_in(state, NEWLY_ACTIVE).any(axis=0)
    now = state[-1] if len(state) else np.zeros(ever.shape, np.int8)
    heads = {
        "base": is_in(now, OF_BASE),
        "dropped": now == HeadState.DROPPED,
        "emerged": ever,
        "still_active": ever & is_in(now, NEWLY_ACTIVE),
    }
    return {name: [int(n) for n in where.sum(axis=1)] for name, where in heads.items()}


def emergence_centre(state: States) -> float:
    """Mean layer of the heads that ever emerged, 0 the first layer and 1 the last; NaN where none has emerged."""
    return mean_layer(np.array(layer_profile(state)["emerged"]))


def mean_layer(heads: NDArray[np.int64]) -> float:
    """Mean layer of a number of heads by layer, [L]; 0 the first layer and 1 the last, NaN without heads."""
    if not heads.sum():
        return float("nan")
    return float(heads @ np.arange(len(heads)) / heads.sum() / max(len(heads) - 1, 1))


def heads_at(where: Bools) -> list[int]:
    """Number of heads at each probe, [P]; where: [P, L, H]."""
    return [int(n) for n in where.sum(axis=(1, 2))]
