"""The circuit rule (the paper's): states and events by plain membership of the circuit. Nothing is tested."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.lives.events import Event
from headwatch.lives.history_arrays import ProbeRow, Verdict
from headwatch.lives.states import advance, changed, event_kind, first_states
from headwatch.stats.importance import normalised, quantile_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class CircuitRule:
    """Judges each probe of one history against the probe before it."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.previous: ProbeRow | None = None

    def judge(
        self, step: int, member: Bools, importance: Floats, stability: Floats, draws: NDArray[Any] | None
    ) -> Verdict:
        """States and events after a probe.

        Args:
            step: training step of the probe.
            member: the circuit's heads, [L, H].
            importance: the paper's importance, not normalised, [L, H].
            stability: share of resamples whose circuit keeps the head, [L, H].
            draws: importance in each resample, [B, L, H], or None.
        """
        row = ProbeRow.empty((member.shape[0], member.shape[1]))
        row.member, row.importance, row.stability = member, normalised(np.abs(importance)), stability
        if draws is not None:
            row.importance_low, row.importance_high = (quantile_of(draws, part) for part in (0.025, 0.975))
        before, self.previous = self.previous, row
        if before is None:
            row.state = first_states(member)
            return Verdict(row, importance_draws=draws)
        row.state = advance(before.state, member, ~member)
        return Verdict(row, events=self._events(step, before, row), importance_draws=draws)

    def _events(self, step: int, before: ProbeRow, now: ProbeRow) -> list[Event]:
        return [
            Event(
                step=int(step),
                family=self.family,
                layer=int(at[0]),
                head=int(at[1]),
                kind=event_kind(before.state[at], now.state[at]),
                share_before=float(before.importance[at]),
                share_now=float(now.importance[at]),
                rule="circuit",
                stability=float(now.stability[at]),
            )
            for at in map(tuple, np.argwhere(changed(before.state, now.state)))
        ]
