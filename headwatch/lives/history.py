"""HeadHistory: adds probes to the states and events of all heads, by the evidence rule or the paper's circuit rule.

What can be read from it is in history_view.py.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.lives.circuit_rule import CircuitRule
from headwatch.lives.events import PENDING, WITHDRAWN, Event
from headwatch.lives.evidence_rule import EvidenceRule
from headwatch.lives.exact_patching import EventPatching
from headwatch.lives.history_arrays import Verdict
from headwatch.lives.history_view import HistoryView
from headwatch.lives.states import ACTIVE, is_in
from headwatch.stats import EvidenceSettings

Floats = NDArray[np.float64]


class HeadHistory(HistoryView):
    """States and events of every head, probe by probe, for one family of probe pairs.

    Evidence rule (`add`). With the active set of `stats.membership` and each head's *mark*, the probe of its last
    event (the base until it has one), a state changes only as follows; every change is significant and material:
      emerged     not base, in the set, stronger than at the base
      pruned      emerged, out of the set, weaker than when it emerged
      re-emerged  pruned, in the set, stronger than when it was pruned and than at the base
      dropped     base, out of the set, weaker than at the base (and, once it has returned, than when it returned)
      returned    a dropped base head in the set, stronger than when it was dropped: retained again, not newly active
    While it is in the set, its share must be significantly non-zero (`stats.nonzero_share`). A head that crosses the
    edge of the set without that evidence keeps its state and its spell: `.member` is the set itself, `.active` follows
    the states. The base is the first probe with signal; a probe with insufficient signal repeats the states before it,
    and its shares are NaN.

    `settings.confirm` sets how significant a change must be at the k-th probe after the base. An event that awaits
    confirmation is pending until the next probe with signal. Once confirmed, it dates from the probe that found it
    first: `.state` of that probe changes. `.pending` lists what is open after the last probe.

    Circuit rule (`add_membership`): the same states by plain membership of the given circuit, as in the paper.

    Args:
        n_layers: L.
        n_heads: H.
        rule: "evidence" or "circuit".
        settings: parameters of the evidence rule; None: the defaults.
        family: name of the probe family, repeated in events.
        layers: indices of the layers that have attention heads (hybrid models); None: all. The heads of the others do
            not exist: they are tested and counted nowhere, and in arrays they are inactive with share 0.

    Attributes:
        steps: training steps of the probes, [P].
        signal: "ok" or "insufficient signal" for each probe, [P].
        events: all confirmed and pending events, in the order in which they were first found.
        withdrawn: events that the next probe did not confirm.
        arrays: the measurements of every probe.
    """

    if TYPE_CHECKING:  # attached in headwatch/record/replay.py, which imports this file
        from_run: ClassVar[Callable[..., "HeadHistory"]]

    def __init__(
        self,
        n_layers: int,
        n_heads: int,
        *,
        rule: str = "evidence",
        settings: EvidenceSettings | None = None,
        family: str = "",
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__(n_layers, n_heads, rule, settings or EvidenceSettings(), family, layers)
        self._evidence = EvidenceRule(self.settings, family, self._with_heads.layers)
        self._circuit = CircuitRule(family)
        self._patching = EventPatching(self.settings)

    # --- adding probes ------------------------------------------------------------------------------------------------

    def add(self, step: int, scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> list[Event]:
        """Add one probe by the evidence rule.

        Values are rounded to float32, so that a history read back from disk is identical.

        Args:
            step: training step, larger than that of the probe before.
            scores: signed head scores, [N, L, H]; the same pairs in the same order at every probe (with the test
                "welch": other pairs, the same number).
            metric_clean: [N].
            metric_corrupted: [N].

        Returns:
            New events, and earlier pending events that this probe confirms or withdraws.

        Raises:
            UserError: steps do not grow, shapes do not fit, or the history follows the circuit rule.
        """
        self._check_step(step, "evidence")
        with np.errstate(over="ignore"):
            s, clean, corrupted = (_float32(x) for x in (scores, metric_clean, metric_corrupted))
        self._check_pairs(step, s, clean, corrupted)
        verdict = self._evidence.judge(step, self._with_heads.pick(s), clean, corrupted)
        return self._append(step, self._with_heads.spread_verdict(verdict))

    def add_membership(
        self,
        step: int,
        active: ArrayLike,
        importance: ArrayLike,
        stability: ArrayLike | None = None,
        importance_draws: ArrayLike | None = None,
    ) -> list[Event]:
        """Add one probe by the circuit rule.

        Args:
            step: training step, larger than that of the probe before.
            active: heads of the circuit, bool [L, H].
            importance: [L, H]; normalised here to sum 1.
            stability: share of bootstrap resamples whose circuit keeps the head, [L, H].
            importance_draws: importance in each of these resamples (the same ones at every probe), [B, L, H]: gives the
                intervals of importance and effect.

        Returns:
            The events, each with the head's stability.

        Raises:
            UserError: steps do not grow, shapes do not fit, or the history follows the evidence rule.
        """
        self._check_step(step, "circuit")
        member = np.array(active, np.bool_)
        size = _float32(importance)
        keeps = np.full(member.shape, np.nan) if stability is None else _float32(stability)
        draws = None if importance_draws is None else np.asarray(importance_draws)
        for name, shape in (("active", member.shape), ("importance", size.shape), ("stability", keeps.shape)):
            self._check_heads(name, shape)
        if draws is not None:
            self._check_heads("importance_draws", draws.shape[1:])
        return self._append(step, self._circuit.judge(step, member, size, keeps, draws))

    def add_patched(self, effects: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> list[Event]:
        """Add exact effects of some heads at the last probe, and complete the events that this probe found.

        Args:
            effects: exact effects, [N, L, H]; NaN where a head was not patched.
            metric_clean: [N].
            metric_corrupted: [N].

        Returns:
            The new events of the last probe, with their patched shares (`lives.exact_patching`).
        """
        values, clean, corrupted = (_float32(x) for x in (effects, metric_clean, metric_corrupted))
        step = self.steps[-1]
        self._check_pairs(step, values, clean, corrupted)
        if self.signal[-1] == stats.OK and np.isfinite(values).all(axis=0).any():
            self.events = self._patching.complete(self.events, (values, clean, corrupted), step, self.base_step)
        found = [event for event in self.events if event.step == step]
        self._evidence.pending = [event for event in found if event.status == PENDING]
        return found

    def pairs_needed(self) -> int | None:
        """Approximate number of pairs needed to detect the loss of nine in ten active heads (`stats.pairs_needed`)."""
        if not self._evidence.has_base or self.signal[-1] != stats.OK:
            return None
        active = self._with_heads.pick(is_in(self.arrays.rows[-1].state, ACTIVE))
        return stats.pairs_needed(self._evidence.previous.share, active, self.settings)

    def snapshot(self) -> "HeadHistory":
        """The history as it is now, which later probes do not change; for figures that another thread draws."""
        other = copy(self)
        other.arrays = copy(self.arrays)
        other.arrays.rows = list(self.arrays.rows)
        other.steps, other.signal = list(self.steps), list(self.signal)
        other.events, other.withdrawn = list(self.events), list(self.withdrawn)
        other._effect_draws = copy(self._effect_draws)
        other._evidence, other._settled = copy(self._evidence), self._settled.copy()
        return other

    # --- inside -------------------------------------------------------------------------------------------------------

    def _append(self, step: int, verdict: Verdict) -> list[Event]:
        for event in verdict.events:
            if event.settled_at is None:
                self.events.append(event)
            else:
                self._settle(event, verdict.row.state)
        self.steps.append(int(step))
        self.signal.append(verdict.signal)
        self.arrays.rows.append(verdict.row)
        if self._base is None and verdict.signal == stats.OK:
            self._base = len(self.steps) - 1
        self._summarise_settled()
        if verdict.signal == stats.OK:
            self._effect_draws.add(verdict.importance_draws)
        return verdict.events

    def _settle(self, event: Event, state: NDArray[np.int8]) -> None:
        """Replace or remove a pending event; a confirmed one changes the states since the probe that found it first."""
        at = (event.layer, event.head)  # a head has at most one event per probe
        newest_first = reversed(range(len(self.events)))
        place = next(i for i in newest_first if _key(self.events[i]) == (event.step, *at))
        if event.status == WITHDRAWN:
            del self.events[place]
            self.withdrawn.append(event)
            return
        self.events[place] = event
        for index in range(bisect_left(self.steps, event.step), len(self.arrays.rows)):
            row = self.arrays.rows[index] = copy(self.arrays.rows[index])  # snapshots keep the row as it was
            row.state = row.state.copy()
            row.state[at] = state[at]

    def _summarise_settled(self) -> None:
        """Add the probes whose states are final to the running summary: those before the first pending event."""
        pending = self._evidence.pending
        final = bisect_left(self.steps, min(event.step for event in pending)) if pending else len(self.steps)
        for index in range(self._summarised, final):
            self._settled.add(self.steps[index], self.arrays.rows[index].state)
        self._summarised = max(self._summarised, final)

    def _check_step(self, step: int, rule: str) -> None:
        if rule != self.rule:
            call = {"evidence": "add(step, scores, ...)", "circuit": "add_membership(step, active, importance, ...)"}
            raise UserError(f"this history follows the {self.rule} rule: {call[self.rule]}")
        if self.steps and step <= self.steps[-1]:
            raise UserError(f"step {step} after step {self.steps[-1]}: add probes in increasing order of steps")

    def _check_pairs(self, step: int, scores: Floats, clean: Floats, corrupted: Floats) -> None:
        if scores.ndim != 3 or not len(scores) or clean.shape != scores.shape[:1] or corrupted.shape != clean.shape:
            raise UserError(
                f"scores {scores.shape}, metric_clean {clean.shape}, metric_corrupted {corrupted.shape}: "
                "give [N, L, H], [N] and [N] of the same N >= 1 pairs"
            )
        self._check_heads("scores", scores.shape[1:])
        if self._n_pairs not in (None, len(scores)):
            raise UserError(
                f"step {step} has {len(scores)} pairs, the probes before it had {self._n_pairs}: pairs must not change"
            )
        self._n_pairs = len(scores)

    def _check_heads(self, name: str, shape: tuple[int, ...]) -> None:
        if tuple(shape) != self.arrays.shape:
            raise UserError(
                f"{name} has shape {shape} over heads: this history has {self.n_layers} layers x {self.n_heads} heads"
            )


def _key(event: Event) -> tuple[int, int, int]:
    return event.step, event.layer, event.head


def _float32(values: ArrayLike) -> Floats:
    """Values rounded to float32, as float64."""
    return np.asarray(values, np.float32).astype(np.float64)
