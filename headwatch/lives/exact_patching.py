"""Events and exact patching: does the exact effect of a head change as its estimated share does?

Scores estimate what happens when a head's output is exchanged; patching measures it. The patched share of a head is its
mean exact effect over the mean metric gap, on the same pairs as its share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headwatch.lives.events import Event
from headwatch.stats import EvidenceSettings
from headwatch.stats.paired_tests import change
from headwatch.stats.shares import Estimate, shares

SUPPORTS, SAME_SIGN, CONTRADICTS = "supports", "same sign", "contradicts"
LEVEL = 0.05  # of the paired p that supports an event
BECAME_ACTIVE = ("emerged", "re-emerged", "returned")

Floats = NDArray[np.float64]
Head = tuple[int, int]


@dataclass(frozen=True)
class PatchedShares:
    """Patched shares of some heads at one probe; the arrays of the estimate are [1, K].

    Attributes:
        heads: (layer, head) of each of the K columns.
        share: the shares with the contribution of each pair.
    """

    heads: tuple[Head, ...]
    share: Estimate

    @classmethod
    def of(cls, patched: Floats, metric_clean: Floats, metric_corrupted: Floats) -> "PatchedShares":
        """From effects [N, L, H], NaN where a head was not patched, and the metric of both runs, [N]."""
        at = np.argwhere(np.isfinite(patched).all(axis=0))
        columns = patched[:, at[:, 0], at[:, 1]][:, None]
        heads = tuple((int(layer), int(head)) for layer, head in at)
        return cls(heads, shares(columns, metric_clean, metric_corrupted))

    def pick(self, head: Head) -> Estimate | None:
        """The share of one head; None if it was not patched."""
        if head not in self.heads:
            return None
        column = [self.heads.index(head)]
        share = self.share
        return Estimate(share.value[:, column], share.influence[:, :, column], share.resolution[:, column])


class EventPatching:
    """Patched shares of all probes of one history.

    Args:
        settings: the test of the paired change.
    """

    def __init__(self, settings: EvidenceSettings) -> None:
        self.settings = settings
        self._by_step: dict[int, PatchedShares] = {}

    def complete(
        self, events: Sequence[Event], effects: tuple[Floats, Floats, Floats], step: int, base_step: int | None
    ) -> list[Event]:
        """The events, those of `step` with their patched shares.

        Args:
            events: all events so far. The reference probe of one is that of the head's event before it, or the base.
            effects: exact effects [N, L, H], NaN where a head was not patched, and the metric of both runs, [N].
            step: the probe at which the heads were patched.
            base_step: step of the base probe.
        """
        now = self._by_step[step] = PatchedShares.of(*effects)
        found = list(events)
        for place, event in enumerate(found):
            if event.step == step:
                earlier = [e.step for e in found if (e.layer, e.head) == (event.layer, event.head) and e.step < step]
                reference = max(earlier, default=base_step)
                before = None if reference is None else self._by_step.get(reference)
                found[place] = with_patching(event, before, now, self.settings)
        return found


def with_patching(event: Event, before: PatchedShares | None, now: PatchedShares, settings: EvidenceSettings) -> Event:
    """The event with the patched shares of its head, their paired p, and their verdict.

    With a patched share at the reference probe: "contradicts" if the patched share changed in the other direction than
    the share, else "supports" if that change has p <= 0.05, else "same sign". Without: for a head that became active,
    "same sign" or "contradicts" by the signs of the patched and the estimated share now; None for the others.

    Args:
        event: an event of the evidence rule.
        before: patched shares at its reference probe; None if nothing was patched there.
        now: patched shares at the probe that found it.
        settings: the test.
    """
    head = (event.layer, event.head)
    after = now.pick(head)
    if after is None or event.share_now is None or event.share_before is None:
        return event
    reference = None if before is None else before.pick(head)
    value = float(after.value[0, 0])
    if reference is None:
        verdict = _same(value, event.share_now) if event.kind in BECAME_ACTIVE else None
        return replace(event, patched_now=value, patching=verdict)
    p = float(change(reference, after, settings).p_value[0, 0])
    old = float(reference.value[0, 0])
    verdict = _same(value - old, event.share_now - event.share_before)
    if verdict == SAME_SIGN and p <= LEVEL:
        verdict = SUPPORTS
    return replace(event, patched_before=old, patched_now=value, patched_p=p, patching=verdict)


def _same(patched: float, estimated: float) -> str:
    return SAME_SIGN if patched * estimated > 0.0 else CONTRADICTS
