"""What every probe said of every head, kept by name and given back as arrays over probes. Pure numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch import stats
from headwatch.errors import UserError
from headwatch.lives.states import Lives
from headwatch.stats import Change, NullBand
from headwatch.stats.importance import EffectDraws, effect, entropy, intensity, kurtosis

MEASURES = ("share", "raw", "importance")
REFERENCES = ("base", "previous")


class ProbeRows(Lives):
    """The arrays of a history: a row a probe. `steps` and `signal` have P entries, arrays are [P, L, H]."""

    n_layers: int
    n_heads: int
    steps: list[int]
    signal: list[str]
    _rows: dict[str, list[Any]]
    _effect_draws: EffectDraws

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
        """Benjamini-Hochberg-adjusted p of each share's change since the base, [P, L, H] (`stats.paired_change`)."""
        return self._stack("q_value", np.float64)

    @property
    def detectable(self) -> NDArray[np.bool_]:
        """Whether the complete loss of the head would be told on these pairs, [P, L, H] (`stats.detectable`).

        False at probes with insufficient signal and under the circuit rule.
        """
        return self._stack("detectable", np.bool_)

    @property
    def strengthened(self) -> NDArray[np.bool_]:
        """Significantly and materially larger |share| than at base, [P, L, H]."""
        return self._stack("strengthened", np.bool_)

    @property
    def weakened(self) -> NDArray[np.bool_]:
        """Significantly and materially smaller |share| than at base, [P, L, H]."""
        return self._stack("weakened", np.bool_)

    @property
    def head_score(self) -> NDArray[np.float64]:
        """The signed head score, mean over pairs, [P, L, H]: an estimate of what corrupting the head would do.

        Not the paper's importance, which sums |edge score|: the two are different claims about a head.
        """
        return self.raw

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
    def importance_low(self) -> NDArray[np.float64]:
        """Lower end of the importance's 95 % interval, [P, L, H]; NaN where it is not known.

        Circuit rule: over bootstrap resamples of the pairs. Evidence rule: by the delta method.
        """
        return self._stack("importance_low", np.float64)

    @property
    def importance_high(self) -> NDArray[np.float64]:
        """Upper end of the same interval, [P, L, H]."""
        return self._stack("importance_high", np.float64)

    @property
    def stability(self) -> NDArray[np.float64]:
        """Share of bootstrap resamples that keep the head in the circuit, [P, L, H]; NaN under the evidence rule."""
        return self._stack("stability", np.float64)

    def change(self, of: str = "share", since: str = "base") -> Change:
        """The paired change of every head at every probe, with its error, p and q (over the heads of one probe).

        of: "share", "raw" (the mean raw score, which also shrinks when the whole task does) or "importance". since:
        "base", or "previous", the last probe before this one that had signal. Fields are [P, L, H], NaN at the base
        probe, at probes without signal and under the circuit rule; `.interval()` gives 95 % intervals.
        """
        if of not in MEASURES or since not in REFERENCES:
            raise UserError(f"of={of!r}, since={since!r}: give one of {MEASURES} and one of {REFERENCES}")
        nothing = np.full((self.n_layers, self.n_heads), np.nan)
        found = [Change(*[nothing] * 5) if c is None else c for c in self._rows.get(f"{of}_since_{since}", [])]
        shape = (len(found), self.n_layers, self.n_heads)
        names = ("difference", "standard_error", "p_value", "q_value", "freedom")
        return Change(*(np.array([getattr(c, name) for c in found], np.float64).reshape(shape) for name in names))

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
        return next((step for step, said in zip(self.steps, self.signal, strict=True) if said == stats.OK), None)

    # --- importance -------------------------------------------------------------------------------------------------

    def effect(self) -> NDArray[np.float64]:
        """E(l, h) of every probe after the base against the base, mean over probes, [L, H] in [-1, 1]."""
        told = [index for index, said in enumerate(self.signal) if said == stats.OK]
        if len(told) < 2:
            return np.zeros((self.n_layers, self.n_heads))
        importance = self.importance[told]
        return effect(importance[1:], importance[0]).mean(axis=0)

    def effect_interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """95 % interval of `effect()` by a paired bootstrap over the pairs, (lower, upper), each [L, H].

        For each head by itself: nothing is corrected over heads. None before there is a probe after the base, and for a
        circuit history without importance_draws (records of older versions).
        """
        return self._effect_draws.interval()

    def raw_change(self) -> NDArray[np.float64]:
        """Mean raw score minus the base's, [P, L, H] (zeros before there is a base)."""
        raw = self.raw
        return raw - raw[self.steps.index(self.base_step)] if self.base_step is not None else np.zeros_like(raw)

    def intensity(self) -> list[float]:
        """Sum over heads of |mean raw head score|, each probe: how much the heads do, in the metric's units."""
        return [intensity(x) for x in self.raw]

    def entropy(self) -> list[float]:
        """Entropy of the importance over heads, 1 when all weigh the same, each probe."""
        return [entropy(x) for x in self.importance]

    def kurtosis(self) -> list[float]:
        """Excess kurtosis of the importance over heads, large when few carry much, each probe."""
        return [kurtosis(x) for x in self.importance]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _last(self, name: str) -> Any:
        rows = self._rows.get(name)
        return rows[-1] if rows else None

    def _stack(self, name: str, dtype: type) -> NDArray[Any]:
        rows = self._rows.get(name, [])
        return np.array(rows, dtype=dtype).reshape(len(rows), self.n_layers, self.n_heads)
