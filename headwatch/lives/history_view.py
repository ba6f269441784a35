"""HistoryView: what a history of states can be asked, over probes and over the run; history.py adds the probes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.lives import states
from headwatch.lives.events import PENDING, Event
from headwatch.lives.head_layers import HeadLayers
from headwatch.lives.history_arrays import HistoryArrays
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


class HistoryView:
    """The states and measurements of all heads at every probe so far: base class of `HeadHistory`, which adds probes.

    Arguments and attributes: see `HeadHistory`.
    """

    def __init__(
        self,
        n_layers: int,
        n_heads: int,
        rule: str,
        settings: EvidenceSettings,
        family: str,
        layers: Sequence[int] | None,
    ) -> None:
        if rule not in RULES:
            raise UserError(f"rule={rule!r}: give 'evidence' or 'circuit'")
        self.n_layers, self.n_heads, self.rule, self.family = int(n_layers), int(n_heads), rule, family
        self.settings = settings
        self.steps: list[int] = []
        self.signal: list[str] = []
        self.events: list[Event] = []
        self.withdrawn: list[Event] = []
        self.arrays = HistoryArrays((self.n_layers, self.n_heads))
        self._with_heads = HeadLayers(self.arrays.shape, layers)
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
            "pending": len(self.pending),
            "detectable": int((active & row.detectable).sum()),
            "importance_intensity": intensity(row.raw),
            "metric_gap": row.metric_gap,
            "split_half_agreement": row.split_half,
            "membership_changes": int((row.member ^ self.arrays.rows[self._base or 0].member).sum()),
            **({} if row.null_band is None else {"membership_changes_by_chance": row.null_band.median}),
            "signal": float(self.signal[-1] == stats.OK),
        }

    def _summary(self) -> RunningSummary:
        """The running summary of all probes."""
        summary = self._settled.copy()
        for index in range(self._summarised, len(self.steps)):
            summary.add(self.steps[index], self.arrays.rows[index].state)
        return summary
