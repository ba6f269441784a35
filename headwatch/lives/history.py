"""HeadHistory: the lives of all heads over a run, by the evidence rule or by the paper's circuit rule. Pure numpy."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.lives.events import PENDING, WITHDRAWN, Event
from headwatch.lives.evidence_rule import EvidenceRule, Probed
from headwatch.lives.history_arrays import MEASURES, REFERENCES, ProbeRows
from headwatch.lives.states import HeadState, advance, changed, event_kind
from headwatch.stats import EvidenceSettings
from headwatch.stats.importance import EffectDraws, effect, entropy, intensity, kurtosis, normalised, quantile_of

__all__ = ["RULES", "HeadHistory", "effect"]

RULES = ("evidence", "circuit")


class HeadHistory(ProbeRows):
    """Every head's life, probe by probe, for one family of probe pairs.

    Evidence rule (`add`). With the active set of `stats.membership` and each head's *mark*, the probe of its last
    event (the base until it has one), a life changes only like this, every change significant and material:
      emerged     not base, in the set, stronger than at base
      pruned      emerged, out of the set, weaker than when it emerged
      re-emerged  pruned, in the set, stronger than when it was pruned and than at base
      dropped     base, out of the set, weaker than at base (and, once it has returned, than when it returned)
      returned    a dropped base head in the set, stronger than when it was dropped: retained again, and not emergent,
                  since the base model had it
    Where it is in the set its share must be significantly non-zero (`stats.nonzero_share`): an estimate that rests on
    a few pairs makes no event. A head that crosses the set's edge without that evidence keeps its state and stays in
    its spell: `.member` shows the set itself, `.active` the lives. The base is the first probe with signal; a probe
    with insufficient signal repeats the states before it and its shares are NaN.

    How significant a change must be at the k-th probe after the base is `settings.confirm`'s choice.
    An event that has to wait is pending until the next probe with signal sees it again. Then its life is told from the
    probe that saw it first: `.state` of that probe changes, `.pending` shows what is still open at the last one.

    Circuit rule (`add_membership`): the same words by plain membership of the given circuit, as the paper does.

    .steps and .signal ("ok" or "insufficient signal") have one entry a probe. .events: all events so far, confirmed or
    pending, in the order in which they were seen; .withdrawn: those that the next probe did not confirm.
    """

    def __init__(
        self,
        n_layers: int,
        n_heads: int,
        *,
        rule: str = "evidence",
        settings: EvidenceSettings | None = None,
        family: str = "",
    ) -> None:
        if rule not in RULES:
            raise UserError(f"rule={rule!r}: give 'evidence' or 'circuit'")
        self.n_layers, self.n_heads, self.rule, self.family = int(n_layers), int(n_heads), rule, family
        self.settings = settings or EvidenceSettings()
        self.steps: list[int] = []
        self.signal: list[str] = []
        self.events: list[Event] = []
        self.withdrawn: list[Event] = []
        self._rows: dict[str, list[Any]] = {}
        self._judge: EvidenceRule | None = None
        self._n_pairs: int | None = None
        self._effect_draws = EffectDraws()

    # --- growing ----------------------------------------------------------------------------------------------------

    def add(self, step: int, scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> list[Event]:
        """One probe by the evidence rule; returns what it has to tell of events: new ones, and those that it settles.

        scores: [N, L, H] signed head scores; metric_clean, metric_corrupted: [N]. Steps must grow, and the pairs stay
        the same, in the same order (with settings.test "welch": other pairs, as many). Values are rounded to float32,
        so that a history read back from disk is the same.
        """
        self._expect(step, "evidence")
        with np.errstate(over="ignore"):
            s, clean, corrupted = (
                np.asarray(x, np.float32).astype(np.float64) for x in (scores, metric_clean, metric_corrupted)
            )
        if s.ndim != 3 or not len(s) or clean.shape != s.shape[:1] or corrupted.shape != s.shape[:1]:
            raise UserError(
                f"scores {s.shape}, metric_clean {clean.shape}, metric_corrupted {corrupted.shape}: "
                "give [N, L, H], [N] and [N] of the same N >= 1 pairs"
            )
        self._expect_shape("scores", s.shape[1:])
        if self._n_pairs not in (None, len(s)):
            raise UserError(
                f"step {step} brings {len(s)} pairs, the probes before it had {self._n_pairs}: pairs are frozen"
            )
        self._n_pairs = len(s)
        shape = (self.n_layers, self.n_heads)
        nan, no = np.full(shape, np.nan), np.zeros(shape, np.bool_)
        with np.errstate(invalid="ignore"):
            row: dict[str, Any] = {"raw": s.mean(axis=0), "metric_gap": float((corrupted - clean).mean())}
        row["split_half"] = stats.split_half_agreement(s)
        signal = stats.signal(s, clean, corrupted, self.settings)
        member, state = self._last("member"), self._last("state")
        if signal != stats.OK:
            row |= dict.fromkeys(("share", "share_error", "q_value", "importance"), nan)
            row |= {"member": no if member is None else member, "strengthened": no, "weakened": no}
            state = no.astype(np.int8) if state is None else advance(state, no, no)
            return self._commit(step, signal, state, row, [])

        now = Probed.of(s, clean, corrupted)
        size = np.abs(now.share.value)
        row |= {"share": now.share.value, "share_error": now.share.standard_error, "importance": normalised(size)}
        row["importance_low"], row["importance_high"] = stats.interval(now.importance)
        self._effect_draws.add(stats.bootstrap_importance(s))
        row["null_band"] = stats.null_band(s, clean, corrupted, self.settings, resamples=100)
        row["member"] = member = stats.membership(now.share.value, member, self.settings)
        first = self._judge is None
        judge = self._judge = self._judge or EvidenceRule(now, self.settings, self.family)
        row["detectable"] = stats.detectable(now.share, self.settings, judge.least)
        if first:
            row |= {"q_value": np.ones(shape), "strengthened": no, "weakened": no}
            return self._commit(step, signal, np.where(member, HeadState.BASE, HeadState.INACTIVE), row, [])
        verdict = judge.judge(step, state, member, now)
        for event in verdict.told:
            if event.told is not None and event.status != WITHDRAWN:  # confirmed: the life began when it was first seen
                at = (event.layer, event.head)
                for index in range(self.steps.index(event.step), len(self.steps)):
                    self._rows["state"][index][at] = verdict.state[at]
        return self._commit(step, signal, verdict.state, row | verdict.rows, verdict.told)

    def add_membership(
        self,
        step: int,
        active: ArrayLike,
        importance: ArrayLike,
        stability: ArrayLike | None = None,
        importance_draws: ArrayLike | None = None,
    ) -> list[Event]:
        """One probe by the circuit rule; returns its events, each with the head's stability.

        active: bool [L, H], the heads of the circuit. importance: [L, H], normalised here to sum 1. stability: [L, H],
        the share of bootstrap resamples that keep the head. importance_draws: [B, L, H], the importance in each of
        these resamples (the same ones at every probe), from which the intervals of importance and effect come.
        """
        self._expect(step, "circuit")
        member = np.array(active, np.bool_)
        given = np.full(member.shape, np.nan) if stability is None else stability
        size, keeps = (np.asarray(x, np.float32).astype(np.float64) for x in (importance, given))
        for name, array in (("active", member), ("importance", size), ("stability", keeps)):
            self._expect_shape(name, array.shape)
        no, nan = np.zeros(member.shape, np.bool_), np.full(member.shape, np.nan)
        now = normalised(np.abs(size))
        row: dict[str, Any] = dict.fromkeys(("share", "share_error", "q_value", "raw"), nan)
        row |= {"strengthened": no, "weakened": no, "metric_gap": float("nan"), "split_half": float("nan")}
        row |= {"member": member, "importance": now, "stability": keeps}
        if importance_draws is not None:
            self._expect_shape("importance_draws", np.shape(importance_draws)[1:])
            row["importance_low"], row["importance_high"] = (quantile_of(importance_draws, at) for at in (0.025, 0.975))
        self._effect_draws.add(importance_draws)
        if not self.steps:
            return self._commit(step, stats.OK, np.where(member, HeadState.BASE, HeadState.INACTIVE), row, [])
        state, before = self._rows["state"][-1], self._rows["importance"][-1]
        following = advance(state, member, ~member)
        places = np.argwhere(changed(state, following))
        events = [
            Event(
                step=int(step),
                family=self.family,
                layer=int(at[0]),
                head=int(at[1]),
                kind=event_kind(state[at], following[at]),
                share_before=float(before[at]),
                share_now=float(now[at]),
                rule=self.rule,
                stability=float(keeps[at]),
            )
            for at in map(tuple, places)
        ]
        return self._commit(step, stats.OK, following, row, events)

    if TYPE_CHECKING:  # attached in headwatch/record/replay.py, which imports this file
        from_run: ClassVar[Callable[..., "HeadHistory"]]

    # --- what is known now --------------------------------------------------------------------------------------------

    @property
    def pending(self) -> list[Event]:
        """Events of the last probe with signal that the next one has yet to confirm; none under confirm="level"."""
        return [event for event in self.events if event.status == PENDING]

    @property
    def n_pairs(self) -> int | None:
        """Pairs of a probe; None before the first one and under the circuit rule."""
        return self._n_pairs

    def n_detectable(self) -> list[int]:
        """How many of the active heads are resolved (`.resolved`), each probe."""
        return [int(n) for n in (self.active & self.detectable).sum(axis=(1, 2))]

    def pairs_needed(self) -> int | None:
        """About so many pairs would resolve nine in ten of the heads that are active now (`stats.pairs_needed`)."""
        if self._judge is None or self.signal[-1] != stats.OK:
            return None
        return stats.pairs_needed(self._judge.previous.share, self.active[-1], self.settings)

    def latest_scalars(self) -> dict[str, float]:
        """The headline numbers of the last probe, by name; cohorts as cohort/<step of first emergence>."""
        if not self.steps:
            return {}
        importance, step = self.importance[-1], self.steps[-1]
        here = {f"{'re_emerged' if label == 're-emerged' else label}": n[-1] for label, n in self.counts().items()}
        here["retained"] += here.pop("base")  # one line over the whole run, for the base probe too
        scalars: dict[str, float] = {
            "active": int(self.active[-1].sum()),
            "newly_active": self.newly_active()[-1],
            **here,
        }
        scalars["events"] = sum(event.step == step for event in self.events)
        scalars["median_spell"] = self.median_spell()
        scalars |= {"turnover": self.turnover()[-1], "persistence": self.persistence()}
        scalars["emergence_centre"] = self.emergence_centre()
        scalars |= {f"cohort/{first}": n[-1] for first, n in self.cohorts().items()}
        scalars["importance_entropy"], scalars["importance_kurtosis"] = entropy(importance), kurtosis(importance)
        if self.rule == "evidence":
            scalars["strengthened"] = int(self.strengthened[-1].sum())
            scalars["weakened"] = int(self.weakened[-1].sum())
            scalars["pending"] = len(self.pending)
            scalars["detectable"] = self.n_detectable()[-1]
            scalars["importance_intensity"] = intensity(self.raw[-1])
            scalars["metric_gap"], scalars["split_half_agreement"] = self.metric_gap[-1], self.split_half[-1]
            since_base = self.member[-1] ^ self.member[self.steps.index(self.base_step or self.steps[0])]
            scalars["membership_changes"] = int(since_base.sum())
            if (band := self.null_band[-1]) is not None:
                scalars["membership_changes_by_chance"] = band.median
            scalars["signal"] = float(self.signal[-1] == stats.OK)
        return scalars

    # --- inside -----------------------------------------------------------------------------------------------------

    def _expect(self, step: int, rule: str) -> None:
        if rule != self.rule:
            raise UserError(f"this history follows the {self.rule} rule: " + _HOW_TO_ADD[self.rule])
        if self.steps and step <= self.steps[-1]:
            raise UserError(f"step {step} after step {self.steps[-1]}: probes are added in growing order of steps")

    def _expect_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if tuple(shape) != (self.n_layers, self.n_heads):
            raise UserError(
                f"{name} is of {shape} heads: this history has {self.n_layers} layers x {self.n_heads} heads"
            )

    def _commit(
        self, step: int, signal: str, state: NDArray[np.int8], row: dict[str, Any], told: list[Event]
    ) -> list[Event]:
        self.steps.append(int(step))
        self.signal.append(signal)
        row = {**_nothing(state.shape), **row, "state": state.astype(np.int8)}
        for name, value in row.items():
            self._rows.setdefault(name, []).append(value)
        for event in told:
            if event.told is None:
                self.events.append(event)
                continue
            # An event is settled in its place; a head has one event a probe.
            key = (event.step, event.layer, event.head)
            place = next(i for i, e in enumerate(self.events) if (e.step, e.layer, e.head) == key)
            if event.status == WITHDRAWN:
                self.withdrawn.append(event)
                del self.events[place]
            else:
                self.events[place] = event
        return list(told)


def _nothing(shape: tuple[int, ...]) -> dict[str, Any]:
    """What a row holds where its probe says nothing."""
    changes = {f"{of}_since_{since}": None for of in MEASURES for since in REFERENCES}
    nan, no = np.full(shape, np.nan), np.zeros(shape, np.bool_)
    nothing = {"stability": nan, "importance_low": nan, "importance_high": nan, "null_band": None, "detectable": no}
    return {**changes, **nothing}


_HOW_TO_ADD = {"evidence": "add(step, scores, ...)", "circuit": "add_membership(step, active, importance, ...)"}
