"""HeadHistory: the lives of all heads over a run, by the evidence rule or by the paper's circuit rule. Pure numpy."""

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch import evidence
from headwatch.errors import UserError
from headwatch.evidence import Change, EvidenceSettings, NullBand, Shares
from headwatch.importance import effect, entropy, kurtosis, normalised
from headwatch.lives import OF_BASE, Event, HeadState, Lives, advance, event_kind, is_in
from headwatch.run_folder import RunFolder

RULES = ("evidence", "circuit")


class HeadHistory(Lives):
    """Every head's life, probe by probe, for one family of probe pairs.

    Evidence rule (`add`). With the active set of `evidence.membership` and each head's *mark*, the probe of its last
    event (the base until it has one), a life changes only like this, every change significant and material:
      emerged     not base, in the set, stronger than at base
      pruned      emerged, out of the set, weaker than when it emerged
      re-emerged  pruned, in the set, stronger than when it was pruned and than at base
      dropped     base, out of the set, weaker than at base (and, once it has returned, than when it returned)
      returned    a dropped base head in the set, stronger than when it was dropped: retained again, and not emergent,
                  since the base model had it
    A head that crosses the set's edge without that evidence keeps its state and stays in its spell: `.member` shows the
    set itself, `.active` the lives. The base is the first probe with signal; a probe with insufficient signal repeats
    the states before it and its shares are NaN.

    Circuit rule (`add_membership`): the same words by plain membership of the given circuit, as the paper does.

    .steps and .signal ("ok" or "insufficient signal") have one entry a probe, .events all events so far.
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
        self._rows: dict[str, list[Any]] = {}
        self._base: Shares | None = None
        self._mark: Shares | None = None
        self._base_total = 0.0
        self._n_pairs: int | None = None

    # --- growing ----------------------------------------------------------------------------------------------------

    def add(self, step: int, scores: ArrayLike, metric_clean: ArrayLike, metric_corrupted: ArrayLike) -> list[Event]:
        """One probe by the evidence rule; returns its events.

        scores: [N, L, H] signed head scores; metric_clean, metric_corrupted: [N]. Steps must grow, and the pairs stay
        the same, in the same order. Values are rounded to float32, so that a history read back from disk is the same.
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
        row["split_half"] = evidence.split_half_agreement(s)
        signal = evidence.signal(s, clean, corrupted, self.settings)
        member, state = self._last("member"), self._last("state")
        if signal != evidence.OK:
            row |= dict.fromkeys(("share", "share_error", "q_value", "importance"), nan)
            row |= {"member": no if member is None else member, "strengthened": no, "weakened": no}
            state = no.astype(np.int8) if state is None else advance(state, no, no)
            return self._commit(step, signal, state, row, [])

        now = evidence.shares(s, clean, corrupted)
        size = np.abs(now.share)
        row |= {"share": now.share, "share_error": now.standard_error, "importance": normalised(size)}
        row["null_band"] = evidence.null_band(s, clean, corrupted, self.settings, resamples=100)
        row["member"] = member = evidence.membership(now.share, member, self.settings)
        if self._base is None or self._mark is None:
            self._base = self._mark = now
            self._base_total = float(size.sum())
            row |= {"q_value": np.ones(shape), "strengthened": no, "weakened": no}
            return self._commit(step, signal, np.where(member, HeadState.BASE, HeadState.INACTIVE), row, [])
        since_base, up, down = self._change(self._base, now)
        since_mark, risen, fallen = self._change(self._mark, now)
        row |= {"q_value": since_base.q_value, "strengthened": up, "weakened": down}
        base = is_in(state, OF_BASE)
        following = advance(state, member & risen & (base | up), ~member & fallen & (~base | down))
        changed = _changed(state, following)
        events = [
            self._event(step, place, state, following, self._mark.share, now.share, since_mark)
            for place in np.argwhere(changed)
        ]
        self._mark = self._mark.where(changed, now)
        return self._commit(step, signal, following, row, events)

    def add_membership(
        self, step: int, active: ArrayLike, importance: ArrayLike, stability: ArrayLike | None = None
    ) -> list[Event]:
        """One probe by the circuit rule; returns its events, each with the head's stability.

        active: bool [L, H], the heads of the circuit. importance: [L, H], normalised here to sum 1. stability: [L, H],
        the share of bootstrap resamples that keep the head.
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
        if not self.steps:
            return self._commit(step, evidence.OK, np.where(member, HeadState.BASE, HeadState.INACTIVE), row, [])
        state, before = self._rows["state"][-1], self._rows["importance"][-1]
        following = advance(state, member, ~member)
        places = np.argwhere(_changed(state, following))
        events = [self._event(step, p, state, following, before, now, stability=keeps) for p in places]
        return self._commit(step, evidence.OK, following, row, events)

    @classmethod
    def from_run(
        cls,
        folder: "str | os.PathLike[str] | RunFolder",
        family: str | None = None,
        rule: str = "evidence",
        settings: EvidenceSettings | None = None,
    ) -> "HeadHistory":
        """The history of one family of a run folder (or of the trainer's output_dir that contains it).

        family: None is the first. settings: None takes those of the manifest (settings.evidence), else the defaults.
        """
        run = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
        manifest = run.manifest
        if not run.families:
            raise UserError(f"{run.path / 'manifest.json'} names no probe family (probes.families)")
        family = run.families[0] if family is None else family
        pairs = run.pairs_of(family)
        settings = settings or EvidenceSettings.from_dict((manifest.get("settings") or {}).get("evidence") or {})
        model = manifest["model"]
        history = cls(model["n_layers"], model["n_heads"], rule=rule, settings=settings, family=family)
        for step in run.steps:
            scores = run.read_scores(step)
            if rule == "evidence":
                history.add(step, scores.head_scores[pairs], scores.metric_clean[pairs], scores.metric_corrupted[pairs])
                continue
            if scores.circuit_active is None or scores.importance is None:
                raise UserError(
                    f"{run.path} holds no circuit at step {step}: the run scored heads only; take rule='evidence'"
                )
            index = run.families.index(family)
            stability = None if scores.circuit_stability is None else scores.circuit_stability[index]
            history.add_membership(step, scores.circuit_active[index], scores.importance[index], stability)
        return history

    # --- arrays by probe --------------------------------------------------------------------------------------------

    @property
    def state(self) -> NDArray[np.int8]:
        """HeadState of every head, [P, L, H]."""
        return self._stack("state", np.int8)

    @property
    def member(self) -> NDArray[np.bool_]:
        """Whether a head is in the active set itself, evidence or not, [P, L, H]."""
        return self._stack("member", np.bool_)

    @property
    def share(self) -> NDArray[np.float64]:
        """Signed shares, [P, L, H]; NaN at probes with insufficient signal and under the circuit rule."""
        return self._stack("share", np.float64)

    @property
    def share_error(self) -> NDArray[np.float64]:
        """Delta-method standard error of each share, [P, L, H]."""
        return self._stack("share_error", np.float64)

    @property
    def q_value(self) -> NDArray[np.float64]:
        """Benjamini-Hochberg-adjusted p of each share's change since the base, [P, L, H]."""
        return self._stack("q_value", np.float64)

    @property
    def strengthened(self) -> NDArray[np.bool_]:
        """Significantly and materially larger |share| than at base, [P, L, H]."""
        return self._stack("strengthened", np.bool_)

    @property
    def weakened(self) -> NDArray[np.bool_]:
        """Significantly and materially smaller |share| than at base, [P, L, H]."""
        return self._stack("weakened", np.bool_)

    @property
    def raw(self) -> NDArray[np.float64]:
        """Mean raw head score, [P, L, H]: the strength that also shrinks when the whole task does."""
        return self._stack("raw", np.float64)

    @property
    def importance(self) -> NDArray[np.float64]:
        """Importance of every head, sum 1 over heads, [P, L, H].

        Circuit rule: the paper's I(l, h), from edge scores. Evidence rule: |share| over the total, another measure.
        """
        return self._stack("importance", np.float64)

    @property
    def stability(self) -> NDArray[np.float64]:
        """Share of bootstrap resamples that keep the head in the circuit, [P, L, H]; NaN under the evidence rule."""
        return self._stack("stability", np.float64)

    @property
    def metric_gap(self) -> list[float]:
        """Mean metric_corrupted - metric_clean of each probe, in the metric's units."""
        return list(self._rows.get("metric_gap", []))

    @property
    def split_half(self) -> list[float]:
        """Spearman agreement between mean scores of random halves of the pairs, each probe."""
        return list(self._rows.get("split_half", []))

    @property
    def null_band(self) -> list[NullBand | None]:
        """How many heads enter or leave the active set by the sample of pairs alone; None without signal."""
        return list(self._rows.get("null_band", []))

    @property
    def base_step(self) -> int | None:
        """Step of the probe that lives are compared with: the first one with signal; None until there is one."""
        return next((step for step, said in zip(self.steps, self.signal, strict=True) if said == evidence.OK), None)

    # --- lives ------------------------------------------------------------------------------------------------------

    def effect(self) -> NDArray[np.float64]:
        """E(l, h) of every probe after the base against the base, mean over probes, [L, H] in [-1, 1]."""
        told = [index for index, said in enumerate(self.signal) if said == evidence.OK]
        if len(told) < 2:
            return np.zeros((self.n_layers, self.n_heads))
        importance = self.importance[told]
        return effect(importance[1:], importance[0]).mean(axis=0)

    def raw_change(self) -> NDArray[np.float64]:
        """Mean raw score minus the base's, [P, L, H] (zeros before there is a base)."""
        raw = self.raw
        return raw - raw[self.steps.index(self.base_step)] if self.base_step is not None else np.zeros_like(raw)

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
        scalars |= {f"cohort/{first}": n[-1] for first, n in self.cohorts().items()}
        scalars["importance_entropy"], scalars["importance_kurtosis"] = entropy(importance), kurtosis(importance)
        if self.rule == "evidence":
            scalars["strengthened"] = int(self.strengthened[-1].sum())
            scalars["weakened"] = int(self.weakened[-1].sum())
            scalars["importance_intensity"] = float(np.abs(self.raw[-1]).sum())
            scalars["metric_gap"], scalars["split_half_agreement"] = self.metric_gap[-1], self.split_half[-1]
            since_base = self.member[-1] ^ self.member[self.steps.index(self.base_step or self.steps[0])]
            scalars["membership_changes"] = int(since_base.sum())
            if (band := self.null_band[-1]) is not None:
                scalars["membership_changes_by_chance"] = band.median
            scalars["signal"] = float(self.signal[-1] == evidence.OK)
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

    def _change(self, before: Shares, now: Shares) -> tuple[Change, NDArray[np.bool_], NDArray[np.bool_]]:
        """The paired change, and which heads it makes significantly and materially stronger or weaker."""
        change = evidence.paired_change(before, now)
        material = np.abs(change.difference) >= self.settings.material * self._base_total
        proven = (change.q_value <= self.settings.q) & material & (change.difference != 0.0)
        growth = np.abs(now.share) - np.abs(before.share)
        return change, proven & (growth > 0.0), proven & (growth < 0.0)

    def _event(
        self,
        step: int,
        place: NDArray[np.int64],
        state: NDArray[np.int8],
        following: NDArray[np.int8],
        before: NDArray[np.float64],
        now: NDArray[np.float64],
        change: Change | None = None,
        stability: NDArray[np.float64] | None = None,
    ) -> Event:
        at = (int(place[0]), int(place[1]))
        return Event(
            step=int(step),
            family=self.family,
            layer=at[0],
            head=at[1],
            kind=event_kind(state[at], following[at]),
            share_before=float(before[at]),
            share_now=float(now[at]),
            p_value=None if change is None else float(change.p_value[at]),
            q_value=None if change is None else float(change.q_value[at]),
            rule=self.rule,
            stability=None if stability is None else float(stability[at]),
        )

    def _commit(
        self, step: int, signal: str, state: NDArray[np.int8], row: dict[str, Any], events: list[Event]
    ) -> list[Event]:
        self.steps.append(int(step))
        self.signal.append(signal)
        row = {"stability": np.full(state.shape, np.nan), "null_band": None, **row, "state": state.astype(np.int8)}
        for name, value in row.items():
            self._rows.setdefault(name, []).append(value)
        self.events += events
        return list(events)

    def _last(self, name: str) -> Any:
        rows = self._rows.get(name)
        return rows[-1] if rows else None

    def _stack(self, name: str, dtype: type) -> NDArray[Any]:
        rows = self._rows.get(name, [])
        return np.array(rows, dtype=dtype).reshape(len(rows), self.n_layers, self.n_heads)


_HOW_TO_ADD = {"evidence": "add(step, scores, ...)", "circuit": "add_membership(step, active, importance, ...)"}


def _changed(state: NDArray[np.int8], following: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Where something happened; base -> retained is only the passing of the base probe."""
    return (following != state) & ~((state == HeadState.BASE) & (following == HeadState.RETAINED))
