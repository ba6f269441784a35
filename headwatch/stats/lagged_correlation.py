"""Rank correlation of two series at several lags, tested by circular block permutation."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.stats import ranks

Floats = NDArray[np.float64]

MIN_PROBES = 12  # probes that had the value; with fewer there is a status instead of a number
MAX_LAG = 3  # probes, either way; never more than a quarter of the series
BLOCKS = 5  # fewer leave too few arrangements for a small p; more break the autocorrelation (docs/reference/live.md)
MAX_TURNS = 100  # of the circle; of a longer series evenly spaced ones are taken, which bounds the cost
OK, INSUFFICIENT, CONSTANT = "ok", "insufficient data", "constant"


@dataclass(frozen=True)
class LaggedCorrelation:
    """Rank correlation of two series at several lags, and whether the largest |rho| is more than chance.

    Spearman: both series are ranked once, as wholes (average ranks for ties), and Pearson's r of the overlapping ranks
    is taken at each lag; at lag 0 that is Spearman's rho. A lag of k > 0 pairs entry i of the first series with entry
    i + k of the second: the first moves before the second.

    lags, rho: one entry a lag. best: the index of the largest |rho|. p_value: the probability, were the series
    independent, of a |rho| this large at *any* of the lags (the search over lags is part of the test).
    status: "ok", "insufficient data" or "constant" (one side never moves); without "ok" there is no p-value.
    """

    lags: tuple[int, ...]
    rho: tuple[float, ...]
    p_value: float
    n: int
    status: str = OK

    @property
    def best(self) -> int:
        """Index of the lag with the largest |rho|; the one nearest to 0 where several are equal."""
        order = sorted(range(len(self.lags)), key=lambda i: (-abs(self.rho[i]), abs(self.lags[i])))
        return order[0] if order else 0

    @property
    def best_lag(self) -> int | None:
        """The lag of the largest |rho|, in entries; None without a status of "ok"."""
        return self.lags[self.best] if self.status == OK else None

    @property
    def best_rho(self) -> float:
        """The rho at that lag; NaN without a status of "ok"."""
        return self.rho[self.best] if self.status == OK else float("nan")

    def words(self, first: str, second: str) -> str:
        """One sentence that names the lag and the p-value."""
        if self.status == CONSTANT:
            return f"{first} beside {second}: one of the two never changes."
        if self.status != OK:
            return f"{first} beside {second}: {self.status} ({self.n} probes; {MIN_PROBES} are needed)."
        lag = self.lags[self.best]
        when = "together" if lag == 0 else f"{abs(lag)} probe{'s' if abs(lag) > 1 else ''} "
        when += "" if lag == 0 else ("before it" if lag > 0 else "after it")
        return f"{first} beside {second}: rho {self.best_rho:+.2f}, {when}, p {self.p_value:.2g} over {self.n} probes."


def lagged_correlation(
    one: ArrayLike, other: ArrayLike, *, max_lag: int = MAX_LAG, blocks: int = BLOCKS, min_length: int = MIN_PROBES - 1
) -> LaggedCorrelation:
    """Lagged rank correlation of two series [n], tested by circular block permutation with the maximum over lags.

    The null distribution comes from the first series turned in a circle by every offset, cut into `blocks` blocks of
    equal length, and the blocks put into every order: n * (blocks - 1)! different arrangements, so there is no random
    number in it. Long blocks keep the series' own autocorrelation (docs/reference/live.md). With
    blocks of length 1 (blocks=n, for a few entries) it is the plain permutation test, right only without any.
    """
    x, y = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    if x.size != y.size:
        raise ValueError(f"series of {x.size} and {y.size} entries: give two of the same length")
    n = x.size
    if n < max(min_length, 3):
        return LaggedCorrelation((), (), float("nan"), n, INSUFFICIENT)
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return LaggedCorrelation((), (), float("nan"), n, CONSTANT)
    reach = min(max_lag, n // 4)
    lags = range(-reach, reach + 1)
    a, b = ranks(x), ranks(y)
    rho = _correlations(a[None], b, lags)[0]
    if np.isnan(rho).all():
        return LaggedCorrelation((), (), float("nan"), n, CONSTANT)
    found = np.nanmax(np.abs(rho))
    null = np.nan_to_num(np.abs(_correlations(a[_arrangements(n, blocks)], b, lags))).max(axis=1)
    p_value = float(np.mean(null >= found - 1e-12))  # the arrangement that was found is among them: never 0
    return LaggedCorrelation(tuple(lags), tuple(np.nan_to_num(rho).tolist()), p_value, n)


def _correlations(a: Floats, b: Floats, lags: range) -> Floats:
    """Pearson's r of every row of a [R, n] with b [n] at every lag, over the entries that overlap, [R, lags]."""
    n, columns = len(b), []
    for lag in lags:
        first, second = (a[:, : n - lag], b[lag:]) if lag >= 0 else (a[:, -lag:], b[: n + lag])
        first, second = first - first.mean(axis=1, keepdims=True), second - second.mean()
        norm = np.sqrt((first * first).sum(axis=1) * (second @ second))
        with np.errstate(invalid="ignore", divide="ignore"):
            columns.append(np.where(norm > 0.0, first @ second / norm, np.nan))
    return np.stack(columns, axis=1)


def _arrangements(n: int, blocks: int) -> NDArray[np.int64]:
    """Turns of n entries in a circle, cut into blocks, the blocks in every order: indices [arrangements, n]."""
    if blocks >= n:
        return np.array(list(itertools.permutations(range(n))))
    turns = np.arange(n) if n <= MAX_TURNS else np.unique(np.arange(MAX_TURNS) * n // MAX_TURNS)
    turned = (np.arange(n)[None, :] + turns[:, None]) % n
    pieces = np.array_split(turned, blocks, axis=1)
    # The first block stays in front: what another in front would give is one of the turns.
    orders = [(0, *order) for order in itertools.permutations(range(1, blocks))]
    return np.concatenate([np.concatenate([pieces[i] for i in order], axis=1) for order in orders])
