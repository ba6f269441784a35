"""HeadHistory: the states and events of all heads over a run, by the evidence rule or by the paper's circuit rule."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.lives import states
from headwatch.lives.circuit_rule import CircuitRule
from headwatch.lives.events import PENDING, WITHDRAWN, Event
from headwatch.lives.evidence_rule import EvidenceRule
from headwatch.lives.exact_patching import EventPatching
from headwatch.lives.head_layers import HeadLayers
from headwatch.lives.history_arrays import HistoryArrays, Verdict
from headwatch.lives.reward_coupling import Coupling, couple
from headwatch.lives.running_summary import RunningSummary
from headwatch.lives.states import ACTIVE, NEWLY_ACTIVE, HeadState, Spell, is_in
from headwatch.lives.survival import KaplanMeier, kaplan_meier
from headwatch.model.display import data_frame
from headwatch.model.head_names import head_name
from headwatch.stats import Change, EvidenceSettings, NullBand
from headwatch.stats.importance import EffectDraws, effect, entropy, intensity, kurtosis

RULES = ("evidence", "circuit")
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class HeadHistory:
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
        if rule not in RULES:
            raise UserError(f"rule={rule!r}: give 'evidence' or 'circuit'")
        self.n_layers, self.n_heads, self.rule, self.family = int(n_layers), int(n_heads), rule, family
        self.settings = settings or EvidenceSettings()
        self.steps: list[int] = []
        self.signal: list[str] = []
        self.events: list[Event] = []
        self.withdrawn: list[Event] = []
        self.arrays = HistoryArrays((self.n_layers, self.n_heads))
        self._with_heads = HeadLayers(self.arrays.shape, layers)
        self._evidence = EvidenceRule(self.settings, family, self._with_heads.layers)
        self._circuit = CircuitRule(family)
        self._patching = EventPatching(self.settings)
        self._n_pairs: int | None = None
        self._effect_draws = EffectDraws()
        self._base: int | None = None  # index of the base probe
        self._settled = RunningSummary.empty(self.arrays.shape)
        self._summarised = 0  # number of probes in it

    def __repr__(self) -> str:
        """What was probed, and how many heads are in each state now: `HeadHistory(carry by the evidence rule, ...)`."""
        probes = f"{len(self.steps)} probes" + (f", steps {self.steps[0]} to {self.steps[-1]}" if self.steps else "")
        counts = {name: values[-1] for name, values in self.counts().items() if values and name != "inactive"}
        heads = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "no head active"
        return f"HeadHistory({self.family or 'one family'} by the {self.rule} rule, {probes}; now {heads})"

    def to_pandas(self) -> Any:
        """A DataFrame of one row per head and probe: step, head ("L17.H3"), layer, index, state, active, share.

        Raises:
            UserError: pandas is not installed.
        """
        places = [
            (step, int(at[0]), int(at[1])) for step in range(len(self.steps)) for at in np.argwhere(self.has_head)
        ]
        state, active, share = self.state, self.active, self.share
        return data_frame(
            {
                "step": [self.steps[step] for step, *_ in places],
                "head": [head_name(*head) for _, *head in places],
                "layer": [layer for _, layer, _ in places],
                "index": [index for *_, index in places],
                "state": [HeadState(state[place]).label for place in places],
                "active": [bool(active[place]) for place in places],
                "share": [float(share[place]) for place in places],
            }
        )

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

    # --- heads that exist ---------------------------------------------------------------------------------------------

    @property
    def has_head(self) -> Bools:
        """Whether the head exists, [L, H]: False in layers without attention."""
        return self._with_heads.has_head

    @property
    def total_heads(self) -> int:
        """Number of heads that exist: L * H, but for hybrid models."""
        return self._with_heads.n_heads

    # --- arrays over probes, [P, L, H] --------------------------------------------------------------------------------

    @property
    def state(self) -> NDArray[np.int8]:
        """HeadState of every head, [P, L, H]."""
        return self.arrays.per_head("state")

    @property
    def active(self) -> Bools:
        """Whether the head's state is base, retained, emerged or re-emerged, [P, L, H]."""
        return is_in(self.state, ACTIVE)

    @property
    def member(self) -> Bools:
        """Whether the head is in the active set itself, with or without evidence, [P, L, H]."""
        return self.arrays.per_head("member")

    @property
    def share(self) -> Floats:
        """Signed shares, [P, L, H]; NaN at probes with insufficient signal and under the circuit rule."""
        return self.arrays.per_head("share")

    @property
    def share_error(self) -> Floats:
        """Delta-method standard error of each share, [P, L, H]."""
        return self.arrays.per_head("share_error")

    @property
    def q_value(self) -> Floats:
        """Benjamini-Hochberg-adjusted p of each share's change since the base, [P, L, H] (`stats.paired_change`)."""
        return self.arrays.per_head("q_value")

    @property
    def detectable(self) -> Bools:
        """Whether the complete loss of the head would be detected on these pairs, [P, L, H] (`stats.detectable`).

        False at probes with insufficient signal and under the circuit rule.
        """
        return self.arrays.per_head("detectable")

    @property
    def strengthened(self) -> Bools:
        """Whether |share| is significantly and materially larger than at the base, [P, L, H]."""
        return self.arrays.per_head("strengthened")

    @property
    def weakened(self) -> Bools:
        """Whether |share| is significantly and materially smaller than at the base, [P, L, H]."""
        return self.arrays.per_head("weakened")

    @property
    def raw(self) -> Floats:
        """Mean signed head score, in the metric's units, [P, L, H]; unlike the share it shrinks with the metric gap.

        Not the paper's importance, which sums |edge score|.
        """
        return self.arrays.per_head("raw")

    @property
    def importance(self) -> Floats:
        """Importance of every head, sum 1 over heads, [P, L, H].

        Circuit rule: the paper's I(l, h), from edge scores. Evidence rule: |share| over the total, another measure.
        """
        return self.arrays.per_head("importance")

    @property
    def importance_low(self) -> Floats:
        """Lower end of the importance's 95 % interval, [P, L, H]; NaN where there is none.

        Circuit rule: over bootstrap resamples of the pairs. Evidence rule: by the delta method.
        """
        return self.arrays.per_head("importance_low")

    @property
    def importance_high(self) -> Floats:
        """Upper end of the same interval, [P, L, H]."""
        return self.arrays.per_head("importance_high")

    @property
    def stability(self) -> Floats:
        """Share of bootstrap resamples whose circuit keeps the head, [P, L, H]; NaN under the evidence rule."""
        return self.arrays.per_head("stability")

    def change(self, of: str = "share", since: str = "base") -> Change:
        """The paired change of every head at every probe, with its error, p and q (over the heads of one probe).

        Args:
            of: "share", "raw" or "importance".
            since: "base", or "previous", the last probe before this one that had signal.

        Returns:
            A Change whose fields are [P, L, H], NaN at the base probe, at probes without signal and under the circuit
            rule; its `interval()` gives 95 % intervals.
        """
        return self.arrays.change(of, since)

    # --- numbers per probe, [P] ---------------------------------------------------------------------------------------

    @property
    def metric_gap(self) -> list[float]:
        """Mean metric_corrupted - metric_clean, in the metric's units, [P]."""
        return self.arrays.per_probe("metric_gap")

    @property
    def split_half(self) -> list[float]:
        """Spearman agreement between the mean scores of random halves of the pairs, [P]."""
        return self.arrays.per_probe("split_half")

    @property
    def null_band(self) -> list[NullBand | None]:
        """How many heads enter or leave the active set by sampling of the pairs alone, [P]; None without signal."""
        return self.arrays.per_probe("null_band")

    def counts(self) -> dict[str, list[int]]:
        """State label -> number of heads in that state, [P]; they sum to `total_heads` at every probe."""
        return states.counts(self._with_heads.pick(self.state))

    def newly_active(self) -> list[int]:
        """Active heads that were not active at the base (emerged or re-emerged), [P]."""
        return states.heads_at(is_in(self.state, NEWLY_ACTIVE))

    def gained_and_lost(self) -> tuple[list[int], list[int]]:
        """Heads that became active and that became inactive since the probe before, [P] each; 0 at the first."""
        return states.gained_and_lost(self.active)

    def turnover(self) -> list[int]:
        """Heads that became active or inactive since the probe before, [P]; 0 at the first."""
        return [gained + lost for gained, lost in zip(*self.gained_and_lost(), strict=True)]

    def membership_changes(self) -> list[int]:
        """Heads that are in the active set and were not at the base, or the reverse, with or without evidence, [P]."""
        member = self.member
        return states.heads_at(member ^ member[self._base or 0]) if self.steps else []

    def n_detectable(self) -> list[int]:
        """Number of active heads whose loss would be detected, [P]."""
        return states.heads_at(self.active & self.detectable)

    def intensity(self) -> list[float]:
        """Sum over heads of |mean raw head score|, in the metric's units, [P]."""
        return [intensity(x) for x in self.raw]

    def entropy(self) -> list[float]:
        """Entropy of the importance over heads, 1 when all heads have equal importance, [P]."""
        return [entropy(x) for x in self._with_heads.pick(self.importance)]

    def kurtosis(self) -> list[float]:
        """Excess kurtosis of the importance over heads, large when few heads have most of it, [P]."""
        return [kurtosis(x) for x in self._with_heads.pick(self.importance)]

    # --- the run as a whole -------------------------------------------------------------------------------------------

    @property
    def base_step(self) -> int | None:
        """Step of the base probe, the first one with signal; None until there is one."""
        return None if self._base is None else self.steps[self._base]

    @property
    def pending(self) -> list[Event]:
        """Events of the last probe with signal that await confirmation; none under confirm="level"."""
        return [event for event in self.events if event.status == PENDING]

    @property
    def n_pairs(self) -> int | None:
        """Number of pairs; None before the first probe and under the circuit rule."""
        return self._n_pairs

    def label(self, layer: int, head: int, probe: int = -1) -> str:
        """The label of a head's state at a probe, by default the last one."""
        return HeadState(self.state[probe, layer, head]).label

    def cohorts(self) -> dict[int, list[int]]:
        """Step of first emergence -> how many of those heads are active, [P]; the cohorts sum to newly_active()."""
        return states.cohorts(self.steps, self.state)

    def spells(self) -> list[Spell]:
        """Every uninterrupted active stretch of every head."""
        return states.spells(self.steps, self.state)

    def survival(self, group: str = "emerged", first_only: bool = True) -> KaplanMeier:
        """Survival of spells in training steps; heads active at the last probe are right-censored.

        Args:
            group: "emerged", or "base" (their start is unknown, so time counts from the base probe).
            first_only: only each head's first spell.
        """
        if group not in ("emerged", "base"):
            raise UserError(f"group={group!r}: give 'emerged' or 'base'")
        chosen = [s for s in self.spells() if s.base == (group == "base") and (s.number == 1 or not first_only)]
        return kaplan_meier([s.length for s in chosen], [s.end is not None for s in chosen])

    def median_spell(self) -> float:
        """Median survival of emerged heads' first spells, in training steps; NaN while more than half continue."""
        return self.survival().median

    def activation_frequency(self) -> Floats:
        """The part of all probes at which each head is active, [L, H] in [0, 1]."""
        return self.active.mean(axis=0) if self.steps else np.zeros(self.arrays.shape)

    def persistence(self) -> float:
        """The part of all heads that ever emerged that is active at the last probe; NaN where none has emerged."""
        return states.persistence(self.state)

    def layer_profile(self) -> dict[str, list[int]]:
        """Heads by layer, [L] each: of the base, dropped at the last probe, ever emerged, and of these still active."""
        return states.layer_profile(self.state)

    def emergence_centre(self) -> float:
        """Mean layer of the heads that ever emerged, 0 the first layer and 1 the last; NaN where none has emerged."""
        return states.emergence_centre(self.state)

    def effect(self) -> Floats:
        """E(l, h) of every probe after the base against the base, mean over probes, [L, H] in [-1, 1]."""
        with_signal = [index for index, signal in enumerate(self.signal) if signal == stats.OK]
        if len(with_signal) < 2:
            return np.zeros(self.arrays.shape)
        importance = self.importance[with_signal]
        return effect(importance[1:], importance[0]).mean(axis=0)

    def effect_interval(self) -> tuple[Floats, Floats] | None:
        """95 % interval of `effect()` by a paired bootstrap over the pairs, (lower, upper), each [L, H].

        Head by head, without correction over heads. None before there is a probe after the base, and for a circuit
        history without importance_draws (records of older versions).
        """
        return self._effect_draws.interval()

    def pairs_needed(self) -> int | None:
        """Approximate number of pairs needed to detect the loss of nine in ten active heads (`stats.pairs_needed`)."""
        if not self._evidence.has_base or self.signal[-1] != stats.OK:
            return None
        active = self._with_heads.pick(is_in(self.arrays.rows[-1].state, ACTIVE))
        return stats.pairs_needed(self._evidence.previous.share, active, self.settings)

    def coupling(self, training: Iterable[Mapping[str, Any]], key: str = "reward") -> Coupling:
        """Rank correlation of the number of newly active heads with a logged value, aligned at the probes."""
        return couple(self.steps, self.newly_active(), list(training), key)

    def latest_scalars(self) -> dict[str, float]:
        """The headline numbers of the last probe, by name; cohorts as cohort/<step of first emergence>."""
        if not self.steps:
            return {}
        now, last = self._summary(), self.arrays.rows[-1]
        of_states = {label.replace("-", "_"): n for label, n in self.latest_counts().items()}
        of_states["retained"] += of_states.pop("base")  # one curve over the whole run, the base probe included
        before = is_in(self.arrays.rows[-2].state, ACTIVE) if len(self.steps) > 1 else now.active
        scalars: dict[str, float] = {
            "active": int(now.active.sum()),
            "newly_active": int(now.newly_active.sum()),
            **of_states,
            "events": sum(1 for _ in takewhile(lambda e: e.step == self.steps[-1], reversed(self.events))),
            "median_spell": kaplan_meier(*now.first_spells()).median,
            "turnover": int((now.active ^ before).sum()),
            "persistence": now.persistence(),
            "emergence_centre": states.mean_layer(now.emerged_by_layer()),
            **{f"cohort/{first}": n for first, n in now.cohorts().items()},
            "importance_entropy": entropy(self._with_heads.pick(last.importance)),
            "importance_kurtosis": kurtosis(self._with_heads.pick(last.importance)),
        }
        return scalars | self._latest_evidence(now.active) if self.rule == "evidence" else scalars

    def latest_counts(self) -> dict[str, int]:
        """State label -> number of heads in that state at the last probe; they sum to `total_heads`."""
        state = self._with_heads.pick(self.arrays.rows[-1].state)
        return {label: n[0] for label, n in states.counts(state[None]).items()}

    def _latest_evidence(self, active: Bools) -> dict[str, float]:
        """The scalars that only the evidence rule has; active: heads at the last probe, [L, H]."""
        row = self.arrays.rows[-1]
        return {
            "strengthened": int(row.strengthened.sum()),
            "weakened": int(row.weakened.sum()),
            "pending": len(self._evidence.pending),
            "detectable": int((active & row.detectable).sum()),
            "importance_intensity": intensity(row.raw),
            "metric_gap": row.metric_gap,
            "split_half_agreement": row.split_half,
            "membership_changes": int((row.member ^ self.arrays.rows[self._base or 0].member).sum()),
            **({} if row.null_band is None else {"membership_changes_by_chance": row.null_band.median}),
            "signal": float(self.signal[-1] == stats.OK),
        }

    def snapshot(self) -> "HeadHistory":
        """The history as it is now, which later probes do not change; for figures that another thread draws."""
        other = copy(self)
        other.arrays = copy(self.arrays)
        other.arrays.rows = list(self.arrays.rows)
        other.steps, other.signal = list(self.steps), list(self.signal)
        other.events, other.withdrawn = list(self.events), list(self.withdrawn)
        other._effect_draws = copy(self._effect_draws)
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

    def _summary(self) -> RunningSummary:
        """The running summary of all probes."""
        summary = self._settled.copy()
        for index in range(self._summarised, len(self.steps)):
            summary.add(self.steps[index], self.arrays.rows[index].state)
        return summary

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
