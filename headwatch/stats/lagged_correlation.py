"""Rank correlation of two series, also at several lags, tested by circular block permutation."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MIN_PROBES = 12  # probes that have the value; with fewer the result is a status instead of a number
MAX_LAG = 3  # probes, in both directions; at most a quarter of the series
BLOCKS = 5  # fewer: too few arrangements for a small p; more: autocorrelation is lost (docs/reference/live.md)
MAX_ROTATIONS = 100  # a longer series uses this many evenly spaced rotations, which bounds the cost
OK, INSUFFICIENT, CONSTANT = "ok", "insufficient data", "constant"


@dataclass(frozen=True)
class LaggedCorrelation:
    """Rank correlation of two series at several lags, and the p value of the largest |rho|.

    Each series is ranked once as a whole (average ranks for ties); rho is Pearson's r of the overlapping ranks at each
    lag, at lag 0 Spearman's rho. A lag of k > 0 pairs entry i of the first series with entry i + k of the second: the
    first series changes before the second.

    Attributes:
        lags: the lags, in entries.
        rho: the correlation at each lag.
        p_value: probability of a |rho| this large at any of the lags if the series were independent (corrected for the
            search over lags); NaN unless the status is "ok".
        n: entries in each series.
        status: "ok", "insufficient data" or "constant" (one of the series never changes).
    """

    lags: tuple[int, ...]
    rho: tuple[float, ...]
    p_value: float
    n: int
    status: str = OK

    @property
    def best(self) -> int:
        """Index of the lag with the largest |rho|; of equal ones, the lag nearest to 0."""
        order = sorted(range(len(self.lags)), key=lambda i: (-abs(self.rho[i]), abs(self.lags[i])))
        return order[0] if order else 0

    @property
    def best_lag(self) -> int | None:
        """The lag with the largest |rho|, in entries; None unless the status is "ok"."""
        return self.lags[self.best] if self.status == OK else None

    @property
    def best_rho(self) -> float:
        """The rho at that lag; NaN unless the status is "ok"."""
        return self.rho[self.best] if self.status == OK else float("nan")

    def describe(self, first: str, second: str) -> str:
        """One sentence with the lag and the p value; `first` and `second` name the series."""
        if self.status == CONSTANT:
            return f"{first} and {second}: one of the two never changes."
        if self.status != OK:
            return f"{first} and {second}: {self.status} ({self.n} probes; {MIN_PROBES} are needed)."
        lag = self.lags[self.best]
        probes = f"{abs(lag)} probe{'s' if abs(lag) > 1 else ''}"
        when = "at the same probe" if lag == 0 else f"{probes} {'before' if lag > 0 else 'after'} {second}"
        return f"{first} and {second}: rho {self.best_rho:+.2f}, {when}, p {self.p_value:.2g} over {self.n} probes."


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rank correlation; NaN with fewer than 3 values or where one side is constant.

    scipy.stats.spearmanr differs in the last bit, and records contain the value.
    """
    a, b = (_ranks(x) for x in (one, other))
    if len(a) < 3:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0.0 else float("nan")


def lagged_correlation(
    one: ArrayLike, other: ArrayLike, *, max_lag: int = MAX_LAG, blocks: int = BLOCKS, min_length: int = MIN_PROBES - 1
) -> LaggedCorrelation:
    """Lagged rank correlation of two series, tested by circular block permutation of the maximum over lags.

    Null distribution: the first series, rotated by every offset and cut into blocks of equal length, with the blocks in
    every order. These n * (blocks - 1)! arrangements are enumerated, not drawn. Long blocks keep the autocorrelation of
    the series (docs/reference/live.md); blocks of length 1 (blocks=n, for short series) are the plain permutation test,
    valid only without autocorrelation.

    Args:
        one: [n], the series that is permuted.
        other: [n].
        max_lag: largest lag, in entries; at most n // 4 is used.
        blocks: number of blocks.
        min_length: shorter series have the status "insufficient data".

    Raises:
        ValueError: the series differ in length.
    """
    x, y = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    if x.size != y.size:
        raise ValueError(f"series of {x.size} and {y.size} entries: give two of the same length")
    n = x.size
    if n < max(min_length, 3):
        return LaggedCorrelation((), (), float("nan"), n, INSUFFICIENT)
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return LaggedCorrelation((), (), float("nan"), n, CONSTANT)
    largest = min(max_lag, n // 4)
    lags = range(-largest, largest + 1)
    a, b = _ranks(x), _ranks(y)
    rho = _correlations(a[None], b, lags)[0]
    if np.isnan(rho).all():
        return LaggedCorrelation((), (), float("nan"), n, CONSTANT)
    observed = np.nanmax(np.abs(rho))
    null = np.nan_to_num(np.abs(_correlations(a[_arrangements(n, blocks)], b, lags))).max(axis=1)
    p_value = float(np.mean(null >= observed - 1e-12))  # the observed arrangement is among them, so p > 0
    return LaggedCorrelation(tuple(lags), tuple(np.nan_to_num(rho).tolist()), p_value, n)


def _ranks(values: ArrayLike) -> Floats:
    """Ranks of all values from 1, flat, average ranks for ties."""
    from scipy.stats import rankdata

    ranks: Floats = rankdata(np.asarray(values, np.float64), axis=None)
    return ranks


def _correlations(a: Floats, b: Floats, lags: range) -> Floats:
    """Pearson's r of every row of a [R, n] with b [n] at every lag, over the overlapping entries, [R, lags]."""
    n, columns = len(b), []
    for lag in lags:
        first, second = (a[:, : n - lag], b[lag:]) if lag >= 0 else (a[:, -lag:], b[: n + lag])
        first, second = first - first.mean(axis=1, keepdims=True), second - second.mean()
        norm = np.sqrt((first * first).sum(axis=1) * (second @ second))
        with np.errstate(invalid="ignore", divide="ignore"):
            columns.append(np.where(norm > 0.0, first @ second / norm, np.nan))
    return np.stack(columns, axis=1)


def _arrangements(n: int, blocks: int) -> NDArray[np.int64]:
    """Every rotation of n entries, cut into blocks, with the blocks in every order: indices [arrangements, n]."""
    if blocks >= n:
        return np.array(list(itertools.permutations(range(n))))
    offsets = np.arange(n) if n <= MAX_ROTATIONS else np.unique(np.arange(MAX_ROTATIONS) * n // MAX_ROTATIONS)
    rotated = (np.arange(n)[None, :] + offsets[:, None]) % n
    pieces = np.array_split(rotated, blocks, axis=1)
    # The first block stays in front: the rotations already cover the orders that begin with another block.
    orders = [(0, *order) for order in itertools.permutations(range(1, blocks))]
    return np.concatenate([np.concatenate([pieces[i] for i in order], axis=1) for order in orders])
