"""The evidence rule: states and events by tested changes of share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwatch import stats
from headwatch.lives.events import CONFIRMED, PENDING, WITHDRAWN, Event
from headwatch.lives.history_arrays import MEASURES, REFERENCES, ProbeRow, Verdict
from headwatch.lives.states import OF_BASE, States, advance, changed, event_kind, first_states, is_in, unchanged
from headwatch.stats import Change, Estimate, EvidenceSettings
from headwatch.stats.importance import normalised

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimates:
    """Estimates of one probe: share, raw score and importance of every head."""

    share: Estimate
    raw: Estimate
    importance: Estimate

    @classmethod
    def of(cls, scores: Floats, metric_clean: Floats, metric_corrupted: Floats) -> "Estimates":
        """From [N, L, H], [N] and [N]."""
        share = stats.shares(scores, metric_clean, metric_corrupted)
        return cls(share, stats.raw_scores(scores), stats.share_importance(share))

    def where(self, heads: Bools, other: "Estimates") -> "Estimates":
        """`other` in the heads [L, H] that are True, these estimates elsewhere."""
        if not heads.any():
            return self
        return Estimates(*(getattr(self, name).where(heads, getattr(other, name)) for name in MEASURES))


class EvidenceRule:
    """Judges each probe of one history against its base, the probe before it, and each head's mark.

    The mark of a head is the probe of its last event, the base until it has one. Of a hybrid model, all arrays and
    estimates here are of the layers that have heads, and L is their number; events name layers of the model.

    Args:
        settings: of the rule.
        family: name of the family, repeated in events.
        layers: index in the model of each layer here, [L].

    Attributes:
        threshold: the smallest change of a share that counts.
        base: estimates of the base probe, None until a probe has signal.
        previous: estimates of the last probe with signal.
        mark: estimates at each head's mark.
        mark_nonzero: bool [L, H], whether the share at the mark is significantly non-zero.
        probes: probes with signal after the base.
        pending: events of the last probe with signal that await confirmation.
    """

    base: Estimates
    previous: Estimates
    mark: Estimates
    mark_nonzero: Bools
    threshold: float

    def __init__(self, settings: EvidenceSettings, family: str, layers: Sequence[int]) -> None:
        self.settings, self.family, self.layers = settings, family, layers
        self.state: States | None = None
        self.member: Bools | None = None
        self.has_base = False
        self.probes = 0
        self.pending: list[Event] = []

    def judge(self, step: int, scores: Floats, metric_clean: Floats, metric_corrupted: Floats) -> Verdict:
        """States and events after a probe.

        Args:
            step: training step of the probe.
            scores: signed head scores, [N, L, H].
            metric_clean: [N].
            metric_corrupted: [N].
        """
        row = ProbeRow.empty((scores.shape[1], scores.shape[2]))
        with np.errstate(invalid="ignore"):
            row.raw, row.metric_gap = scores.mean(axis=0), float((metric_corrupted - metric_clean).mean())
        row.split_half = stats.split_half_agreement(scores)
        signal = stats.signal(scores, metric_clean, metric_corrupted, self.settings)
        if signal != stats.OK:
            return Verdict(self._repeated(row), signal)
        now = Estimates.of(scores, metric_clean, metric_corrupted)
        row.share, row.share_error = now.share.value, now.share.standard_error
        row.importance = normalised(np.abs(now.share.value))
        row.importance_low, row.importance_high = stats.interval(now.importance)
        row.null_band = stats.null_band(scores, self.settings, resamples=100)
        row.member = self.member = stats.membership(now.share.value, self.member, self.settings)
        events = self._after_base(step, now, row) if self.has_base else self._begin(now, row)
        row.detectable = stats.detectable(now.share, self.settings, self.threshold)
        self.state = row.state
        return Verdict(row, signal, events, stats.bootstrap_importance(scores))

    def _repeated(self, row: ProbeRow) -> ProbeRow:
        """Without signal: the states and the active set of the probe before."""
        if self.member is not None:
            row.member = self.member
        if self.state is not None:
            self.state = row.state = unchanged(self.state)
        return row

    def _begin(self, now: Estimates, row: ProbeRow) -> list[Event]:
        """The base probe: every reference is this one."""
        self.has_base = True
        self.base = self.previous = self.mark = now
        self.threshold = self.settings.min_change * float(np.abs(now.share.value).sum())
        self.mark_nonzero = self._nonzero_share(now)
        row.q_value = np.ones(row.member.shape)
        row.state = first_states(row.member)
        return []

    def _after_base(self, step: int, now: Estimates, row: ProbeRow) -> list[Event]:
        """A later probe: fills in the changes and the states of its row, returns the events."""
        assert self.state is not None
        self.probes += 1
        row.changes = {
            (of, since): self._change(getattr(self, since), now, of) for since in REFERENCES for of in MEASURES
        }
        since_base = row.changes["share", "base"]
        row.q_value = since_base.q_value
        row.strengthened, row.weakened = self._directions(since_base, self.base, now, self.settings.q)

        since_mark = since_base if self.mark is self.base else self._change(self.mark, now, "share")
        nonzero_now = self._nonzero_share(now)
        joins, leaves = row.member & nonzero_now, ~row.member & self.mark_nonzero
        at_once, waiting = self.settings.levels(self.probes)
        certain, possible = (
            self._following(joins, leaves, since_base, since_mark, now, level)
            for level in (at_once, max(at_once, waiting))
        )
        happened = changed(self.state, possible)
        settled, confirmed = self._settle_pending(step, happened)
        at_once_here = changed(self.state, certain) & ~confirmed
        found = _Found(step, self.state, possible, now, since_mark)
        new = self._events(found, at_once_here, at_once, CONFIRMED)
        self.pending = self._events(found, happened & ~confirmed & ~at_once_here, waiting, PENDING)

        self._move_marks(confirmed, at_once_here, now, nonzero_now)
        row.state = np.where(confirmed | at_once_here, possible, unchanged(self.state))
        return settled + sorted(new + self.pending, key=lambda event: (event.layer, event.head))

    def _following(
        self, joins: Bools, leaves: Bools, since_base: Change, since_mark: Change, now: Estimates, level: float
    ) -> States:
        """The states after this probe if changes count at `level`; joins, leaves: heads that may do so, [L, H]."""
        assert self.state is not None
        risen, fallen = self._directions(since_mark, self.mark, now, level)
        up, down = self._directions(since_base, self.base, now, level)
        of_base = is_in(self.state, OF_BASE)
        return advance(self.state, joins & risen & (of_base | up), leaves & fallen & (~of_base | down))

    def _settle_pending(self, step: int, happened: Bools) -> tuple[list[Event], Bools]:
        """The pending events, confirmed or withdrawn by this probe, and the heads of the confirmed ones, [L, H]."""
        confirmed = np.zeros(happened.shape, np.bool_)
        settled = []
        for event in self.pending:
            at = (self.layers.index(event.layer), event.head)
            confirmed[at] = happened[at]
            settled.append(event.settled(CONFIRMED if happened[at] else WITHDRAWN, step))
        return settled, confirmed

    def _move_marks(self, confirmed: Bools, at_once: Bools, now: Estimates, nonzero_now: Bools) -> None:
        """An event confirmed by this probe was first found at the probe before, which becomes the head's mark."""
        self.mark = self.mark.where(confirmed, self.previous).where(at_once, now)
        self.mark_nonzero = np.where(confirmed, self._nonzero_share(self.previous), self.mark_nonzero)
        self.mark_nonzero = np.where(at_once, nonzero_now, self.mark_nonzero)
        self.previous = now

    def _nonzero_share(self, of: Estimates) -> Bools:
        """Heads whose share is significantly non-zero, [L, H]; all heads where the settings do not require it."""
        if not self.settings.require_nonzero_share:
            return np.ones(of.share.value.shape, np.bool_)
        return stats.nonzero_share(of.share, self.settings, self.threshold)

    def _change(self, before: Estimates, now: Estimates, of: str) -> Change:
        return stats.change(getattr(before, of), getattr(now, of), self.settings)

    def _directions(self, change: Change, before: Estimates, now: Estimates, level: float) -> tuple[Bools, Bools]:
        """Heads that the change makes significantly and materially stronger, and weaker, [L, H] each."""
        counts = stats.significant_and_material(change, level, self.threshold)
        growth = np.abs(now.share.value) - np.abs(before.share.value)
        return counts & (growth > 0.0), counts & (growth < 0.0)

    def _events(self, found: "_Found", where: Bools, level: float, status: str) -> list[Event]:
        """One event for each head in `where`, [L, H]."""
        if not where.any():
            return []
        raw, change = self._change(self.mark, found.now, "raw"), found.since_mark
        lower, upper = change.interval()
        return [
            Event(
                step=int(found.step),
                family=self.family,
                layer=self.layers[at[0]],
                head=int(at[1]),
                kind=event_kind(found.before[at], found.after[at]),
                share_before=float(self.mark.share.value[at]),
                share_now=float(found.now.share.value[at]),
                p_value=float(change.p_value[at]),
                q_value=float(change.q_value[at]),
                difference=float(change.difference[at]),
                lower=float(lower[at]),
                upper=float(upper[at]),
                level=level,
                raw_before=float(self.mark.raw.value[at]),
                raw_now=float(found.now.raw.value[at]),
                raw_p=float(raw.p_value[at]),
                status=status,
            )
            for at in map(tuple, np.argwhere(where))
        ]


@dataclass(frozen=True)
class _Found:
    """What the events of one probe have in common: its step, the states around it, its estimates and their change."""

    step: int
    before: States
    after: States
    now: Estimates
    since_mark: Change
