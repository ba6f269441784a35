"""What the states of all probes so far amount to, updated probe by probe: the cost does not grow with their number."""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from headwatch.lives.states import ACTIVE, NEWLY_ACTIVE, OF_BASE, States, is_in

Bools = NDArray[np.bool_]
Steps = NDArray[np.int64]


@dataclass
class RunningSummary:
    """First emergence and first spell of every head, [L, H] each; -1 where there is none.

    Attributes:
        active: whether the head is active at the last probe.
        newly_active: whether it is and was not at the base.
        emerged_at: step of the first probe at which it is newly active.
        started: step at which its first spell starts.
        ended: step of the first probe at which that spell is over.
        of_base: whether its first spell starts as one of a base head.
        step: of the last probe.
    """

    active: Bools
    newly_active: Bools
    emerged_at: Steps
    started: Steps
    ended: Steps
    of_base: Bools
    step: int = -1

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "RunningSummary":
        """Before the first probe."""
        none, no = np.full(shape, -1, np.int64), np.zeros(shape, np.bool_)
        return cls(no, no, none, none, none, no)

    def copy(self) -> "RunningSummary":
        """An independent copy."""
        arrays = {f.name: getattr(self, f.name).copy() for f in fields(self) if f.name != "step"}
        return replace(self, **arrays)

    def add(self, step: int, state: States) -> None:
        """Add the states [L, H] of the next probe."""
        self.step = step
        self.active, self.newly_active = is_in(state, ACTIVE), is_in(state, NEWLY_ACTIVE)
        self.emerged_at = np.where(self.newly_active & (self.emerged_at < 0), step, self.emerged_at)
        starts = self.active & (self.started < 0)
        self.started = np.where(starts, step, self.started)
        self.of_base = np.where(starts, is_in(state, OF_BASE), self.of_base)
        ends = ~self.active & (self.started >= 0) & (self.ended < 0)
        self.ended = np.where(ends, step, self.ended)

    def cohorts(self) -> dict[int, int]:
        """Step of first emergence -> how many of those heads are newly active at the last probe."""
        ever = self.emerged_at >= 0
        steps, place = np.unique(self.emerged_at[ever], return_inverse=True)
        counts = np.bincount(place, weights=self.newly_active[ever], minlength=len(steps))
        return {int(step): int(count) for step, count in zip(steps, counts, strict=True)}

    def persistence(self) -> float:
        """`states.persistence` of all probes."""
        ever = self.emerged_at >= 0
        return float(self.newly_active[ever].mean()) if ever.any() else float("nan")

    def emerged_by_layer(self) -> NDArray[np.int64]:
        """Heads that ever emerged, [L]."""
        return np.asarray((self.emerged_at >= 0).sum(axis=1))

    def first_spells(self) -> tuple[NDArray[np.int64], Bools]:
        """Lengths of the first spells of heads that were not active at the base, and whether they ended, [n] each."""
        chosen = (self.started >= 0) & ~self.of_base
        over = self.ended[chosen] >= 0
        return np.where(over, self.ended[chosen], self.step) - self.started[chosen], over
