"""The life of a head: its states, its spells, and what is counted from them. Pure numpy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.errors import UserError
from headwatch.lives.events import Event
from headwatch.lives.reward_coupling import Coupling, couple
from headwatch.lives.survival import KaplanMeier, kaplan_meier

__all__ = ["Event", "HeadState", "Lives", "Spell"]

States = NDArray[np.int8]
Bools = NDArray[np.bool_]


class HeadState(IntEnum):
    """Where a head is in its life.

    INACTIVE: not in the base's active set and never emerged. BASE: active at the base probe (the state of that probe
    alone). RETAINED: base and active. DROPPED: base and lost. EMERGED: not base, gained. PRUNED: had emerged, lost.
    REEMERGED: pruned, gained again.
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
        """The word for logs and figures: "re-emerged" for REEMERGED, else the name in lower case."""
        return "re-emerged" if self is HeadState.REEMERGED else self.name.lower()


OF_BASE = (HeadState.BASE, HeadState.RETAINED, HeadState.DROPPED)
ACTIVE = (HeadState.BASE, HeadState.RETAINED, HeadState.EMERGED, HeadState.REEMERGED)
NEWLY_ACTIVE = (HeadState.EMERGED, HeadState.REEMERGED)


@dataclass(frozen=True)
class Spell:
    """One uninterrupted active stretch of a head, in training steps.

    start: step of the probe that first found it active. end: step of the probe that found it gone, or None: still
    active at `last_seen`, the last probe (right-censored). Both are known only to the cadence of the probes.
    number: 1 for the head's first spell. base: a base head, whose birth nobody saw.
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


def advance(state: States, rise: Bools, fall: Bools) -> States:
    """The next states [L, H]: `rise` makes an inactive head active, `fall` an active one inactive; both justified."""
    following = np.where(state == HeadState.BASE, HeadState.RETAINED, state)
    for before, change, after in (
        (HeadState.INACTIVE, rise, HeadState.EMERGED),
        (HeadState.PRUNED, rise, HeadState.REEMERGED),
        (HeadState.DROPPED, rise, HeadState.RETAINED),
        (HeadState.BASE, fall, HeadState.DROPPED),
        (HeadState.RETAINED, fall, HeadState.DROPPED),
        (HeadState.EMERGED, fall, HeadState.PRUNED),
        (HeadState.REEMERGED, fall, HeadState.PRUNED),
    ):
        following = np.where((state == before) & change, after, following)
    return following.astype(np.int8)


def changed(before: States, after: States) -> Bools:
    """Where something happened; base -> retained is only the passing of the base probe."""
    return (after != before) & ~((before == HeadState.BASE) & (after == HeadState.RETAINED))


def event_kind(before: Any, after: Any) -> str:
    """The word for a change of state."""
    if before == HeadState.DROPPED and after == HeadState.RETAINED:
        return "returned"
    return HeadState(after).label


def is_in(state: NDArray[Any], states: tuple[HeadState, ...]) -> Bools:
    """Where `state` is one of `states`, as bool of its shape."""
    return np.isin(state, [int(s) for s in states])


def spells(steps: list[int], state: NDArray[np.int8]) -> list[Spell]:
    """All spells of all heads, by layer, head and time. steps: [P] of the probes; state: [P, L, H]."""
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


def cohorts(steps: list[int], state: NDArray[np.int8]) -> dict[int, list[int]]:
    """Step of first emergence -> how many of those heads are newly active at each probe. state: [P, L, H]."""
    newly = is_in(state, NEWLY_ACTIVE)
    ever = newly.any(axis=0)
    first = np.argmax(newly, axis=0) if len(steps) else np.zeros(ever.shape, np.int64)
    born = {int(index): ever & (first == index) for index in np.unique(first[ever])}
    return {steps[index]: [int(n) for n in (newly & heads).sum(axis=(1, 2))] for index, heads in born.items()}


class Lives:
    """What follows from the states alone, whichever rule made them. `steps` has P entries, `state` is [P, L, H]."""

    steps: list[int]

    @property
    def state(self) -> States:
        """HeadState of every head, [P, L, H]."""
        raise NotImplementedError

    @property
    def active(self) -> NDArray[np.bool_]:
        """Whether a head's life has it active (base, retained, emerged or re-emerged), [P, L, H]."""
        return is_in(self.state, ACTIVE)

    def label(self, layer: int, head: int, probe: int = -1) -> str:
        """The word for a head's state at a probe, the last one by default."""
        return HeadState(self.state[probe, layer, head]).label

    def counts(self) -> dict[str, list[int]]:
        """Heads in each state, by the state's label, at each probe; at every probe they sum to L * H."""
        state = self.state
        return {s.label: [int(n) for n in (state == s).sum(axis=(1, 2))] for s in HeadState}

    def newly_active(self) -> list[int]:
        """Active heads that the base did not have (emerged or re-emerged), at each probe."""
        return [int(n) for n in is_in(self.state, NEWLY_ACTIVE).sum(axis=(1, 2))]

    def cohorts(self) -> dict[int, list[int]]:
        """Step of first emergence -> how many of those heads are active at each probe; they sum to newly_active()."""
        return cohorts(self.steps, self.state)

    def activation_frequency(self) -> NDArray[np.float64]:
        """The part of all probes at which each head is active, [L, H] in [0, 1]."""
        return self.active.mean(axis=0) if self.steps else np.zeros(self.state.shape[1:])

    def spells(self) -> list[Spell]:
        """Every uninterrupted active stretch of every head."""
        return spells(self.steps, self.state)

    def survival(self, group: str = "emerged", first_only: bool = True) -> KaplanMeier:
        """Survival of spells in training steps; heads active at the last probe are right-censored.

        group: "emerged", or "base" (heads that no one saw born: time counts from the base probe, a curve of its own).
        """
        if group not in ("emerged", "base"):
            raise UserError(f"group={group!r}: give 'emerged' or 'base'")
        chosen = [s for s in self.spells() if s.base == (group == "base") and (s.number == 1 or not first_only)]
        return kaplan_meier([s.length for s in chosen], [s.end is not None for s in chosen])

    def turnover(self) -> list[int]:
        """Heads that became active or inactive since the probe before, at each probe; 0 at the first."""
        active = self.active
        return [0] * min(1, len(active)) + [int(n) for n in (active[1:] ^ active[:-1]).sum(axis=(1, 2))]

    def persistence(self) -> float:
        """The part of all heads that ever emerged that is active at the last probe; NaN where none has emerged."""
        newly = is_in(self.state, NEWLY_ACTIVE)
        ever = newly.any(axis=0)
        return float(newly[-1][ever].mean()) if ever.any() else float("nan")

    def layer_profile(self) -> dict[str, list[int]]:
        """Heads by layer, [L] each: of the base, dropped at the last probe, ever emerged, and of these still active."""
        state = self.state
        ever = is_in(state, NEWLY_ACTIVE).any(axis=0)
        now = state[-1] if len(state) else np.zeros(ever.shape, np.int8)
        counted = {
            "base": is_in(now, OF_BASE),
            "dropped": now == HeadState.DROPPED,
            "emerged": ever,
            "still_active": ever & is_in(now, NEWLY_ACTIVE),
        }
        return {name: [int(n) for n in heads.sum(axis=1)] for name, heads in counted.items()}

    def emergence_centre(self) -> float:
        """Mean layer of the heads that ever emerged, 0 the first layer and 1 the last; NaN where none has."""
        layers = np.array(self.layer_profile()["emerged"])
        if not layers.sum():
            return float("nan")
        return float(layers @ np.arange(len(layers)) / layers.sum() / max(len(layers) - 1, 1))

    def median_spell(self) -> float:
        """Median survival of emerged heads' first spells, in training steps; NaN while more than half go on."""
        return self.survival().median

    def coupling(self, training: Iterable[Mapping[str, Any]], key: str = "reward") -> Coupling:
        """Rank correlation of the number of newly active heads with a logged value, aligned at the probes."""
        return couple(self.steps, self.newly_active(), list(training), key)
