"""The evidence rule, probe after probe: which heads' lives change, and on what evidence. Pure numpy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch import stats
from headwatch.lives.events import CONFIRMED, PENDING, WITHDRAWN, Event
from headwatch.lives.states import OF_BASE, States, advance, changed, event_kind, is_in
from headwatch.stats import Change, Estimate, EvidenceSettings, Shares

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Probed:
    """What one probe estimates of every head: its share, its raw score and its importance."""

    share: Shares
    raw: Estimate
    importance: Estimate

    @classmethod
    def of(cls, scores: NDArray[Any], metric_clean: NDArray[Any], metric_corrupted: NDArray[Any]) -> "Probed":
        """From [N, L, H], [N] and [N]."""
        share = stats.shares(scores, metric_clean, metric_corrupted)
        return cls(share, stats.raw_scores(scores), stats.importance(share))

    def where(self, heads: Bools, other: "Probed") -> "Probed":
        """This probe, with `other`'s estimates in the heads [L, H] that are True; itself where none is."""
        if not heads.any():
            return self
        return Probed(
            self.share.where(heads, other.share),
            self.raw.where(heads, other.raw),
            self.importance.where(heads, other.importance),
        )


@dataclass(frozen=True)
class Verdict:
    """What one probe changes. state: [L, H]; told: new, confirmed or withdrawn events; rows: for the record."""

    state: States
    told: list[Event]
    rows: dict[str, Any]


class EvidenceRule:
    """Base, marks and pending events of one history, and the judgement of each further probe against them."""

    def __init__(self, base: Probed, settings: EvidenceSettings, family: str) -> None:
        self.base = self.mark = self.previous = base
        self.settings, self.family = settings, family
        self.least = settings.min_change * float(np.abs(base.share.value).sum())
        self.mark_nonzero = self._nonzero_share(base)  # each head at its mark
        self.probes = 0  # judged since the base
        self.pending: list[Event] = []

    def judge(self, step: int, state: States, member: Bools, now: Probed) -> Verdict:
        """The lives after a probe with signal; state: [L, H] before it, member: the active set at it."""
        self.probes += 1
        at_once, waiting = self.settings.levels(self.probes)
        rows: dict[str, Any] = {
            f"{of}_since_{since}": self._change(getattr(self, since), now, of)
            for since in ("base", "previous")
            for of in ("share", "raw", "importance")
        }
        since_base = rows["share_since_base"]
        rows["strengthened"], rows["weakened"] = self._directions(since_base, self.base, now, self.settings.q)
        rows["q_value"] = since_base.q_value
        nonzero_now = self._nonzero_share(now)
        since_mark = since_base if self.mark is self.base else self._change(self.mark, now, "share")
        sure, likely = (
            self._following(
                state, member & nonzero_now, ~member & self.mark_nonzero, since_base, since_mark, now, level
            )
            for level in (at_once, max(at_once, waiting))
        )
        happened = changed(state, likely)
        told = [
            event.settled(CONFIRMED if happened[event.layer, event.head] else WITHDRAWN, step) for event in self.pending
        ]
        settled = np.zeros(happened.shape, np.bool_)  # heads whose event the probe before saw, and this one again
        for event in told:
            settled[event.layer, event.head] = event.status == CONFIRMED
        certain = changed(state, sure) & ~settled
        fresh = happened & ~settled & ~certain
        certified = self._events(step, certain, state, likely, since_mark, now, at_once, CONFIRMED)
        self.pending = self._events(step, fresh, state, likely, since_mark, now, waiting, PENDING)
        events = sorted(certified + self.pending, key=lambda event: (event.layer, event.head))
        self.mark = self.mark.where(settled, self.previous).where(certain, now)
        self.mark_nonzero = np.where(settled, self._nonzero_share(self.previous), self.mark_nonzero)
        self.mark_nonzero = np.where(certain, nonzero_now, self.mark_nonzero)
        self.previous = now
        none = np.zeros(certain.shape, np.bool_)
        unchanged = advance(state, none, none)
        return Verdict(np.where(settled | certain, likely, unchanged), told + events, rows)

    def _following(
        self,
        state: States,
        may_join: Bools,
        may_leave: Bools,
        since_base: Change,
        since_mark: Change,
        now: Probed,
        level: float,
    ) -> States:
        """The states after this probe if changes count at this level."""
        risen, fallen = self._directions(since_mark, self.mark, now, level)
        up, down = self._directions(since_base, self.base, now, level)
        of_base = is_in(state, OF_BASE)
        return advance(state, may_join & risen & (of_base | up), may_leave & fallen & (~of_base | down))

    def _nonzero_share(self, of: Probed) -> Bools:
        """Of which heads it may be said that they joined the work, or left it after this probe, [L, H]."""
        if not self.settings.require_nonzero_share:
            return np.ones(of.share.value.shape, np.bool_)
        return stats.nonzero_share(of.share, self.settings, self.least)

    def _change(self, before: Probed, now: Probed, of: str) -> Change:
        return stats.change(getattr(before, of), getattr(now, of), self.settings)

    def _directions(self, change: Change, before: Probed, now: Probed, level: float) -> tuple[Bools, Bools]:
        """Which heads the change makes significantly and materially stronger, and which weaker."""
        significant_and_material = stats.significant_and_material(change, level, self.least)
        growth = np.abs(now.share.value) - np.abs(before.share.value)
        return significant_and_material & (growth > 0.0), significant_and_material & (growth < 0.0)

    def _events(
        self,
        step: int,
        where: Bools,
        state: States,
        following: States,
        change: Change,
        now: Probed,
        level: float,
        status: str,
    ) -> list[Event]:
        if not where.any():
            return []
        raw = self._change(self.mark, now, "raw")
        lower, upper = change.interval()
        return [
            Event(
                step=int(step),
                family=self.family,
                layer=int(at[0]),
                head=int(at[1]),
                kind=event_kind(state[at], following[at]),
                share_before=float(self.mark.share.value[at]),
                share_now=float(now.share.value[at]),
                p_value=float(change.p_value[at]),
                q_value=float(change.q_value[at]),
                difference=float(change.difference[at]),
                lower=float(lower[at]),
                upper=float(upper[at]),
                level=level,
                raw_before=float(self.mark.raw.value[at]),
                raw_now=float(now.raw.value[at]),
                raw_p=float(raw.p_value[at]),
                status=status,
            )
            for at in map(tuple, np.argwhere(where))
        ]
