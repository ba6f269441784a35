"""Changes between two probes: paired tests, an unpaired test, and false-discovery control."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from headwatch.errors import UserError
from headwatch.stats.settings import EvidenceSettings
from headwatch.stats.shares import Bools, Estimate, Floats, error_of_mean
from headwatch.stats.sign_flip import sign_flip_p


@dataclass(frozen=True)
class Change:
    """A change of every head's value; all fields are [L, H], or [P, L, H] over probes.

    Attributes:
        difference: value after - value before.
        standard_error: of the difference.
        p_value: two-sided.
        q_value: Benjamini-Hochberg over the heads of one probe, weighted as the settings specify.
        freedom: degrees of freedom of the standard error.
    """

    difference: Floats
    standard_error: Floats
    p_value: Floats
    q_value: Floats
    freedom: Floats

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Student's interval of the difference, head by head: (lower, upper)."""
        half_width = stdtrit(self.freedom, 0.5 + level / 2.0) * self.standard_error
        return self.difference - half_width, self.difference + half_width


def change(before: Estimate, after: Estimate, settings: EvidenceSettings) -> Change:
    """The change, by the test and the weights of the settings."""
    if settings.test == "welch":
        return unpaired_change(before, after)
    return paired_change(before, after, settings.test, settings.weights)


def paired_change(before: Estimate, after: Estimate, test: str = "t", weights: str = "equal") -> Change:
    """Two-sided paired test of every head's value, on the same pairs in the same order.

    The paired values are v_i = after.influence_i - before.influence_i + difference. Their mean is the difference; the
    standard error is sd(v) / sqrt(N). A difference of exactly zero has p = 1.

    weights="size" weights Benjamini-Hochberg by the mean |v_i| of each head, so most of q goes to the heads whose pairs
    moved farthest, up or down. Flipping signs does not change |v_i|, so under the null hypothesis the sign-flip p is
    uniform given the weights, and such weights keep the level (Genovese, Roeder and Wasserman 2006). This does not hold
    for a t test, which uses equal weights. Guarantees and their limits (strongly asymmetric noise):
    docs/evidence/validity.md.

    Args:
        before: values at the earlier probe.
        after: values at the later probe.
        test: "t" (N - 1 degrees of freedom) or "sign-flip" (permutation distribution of the mean of v).
        weights: "size" or "equal"; only used by "sign-flip".

    Raises:
        UserError: the probes have different numbers of pairs.
    """
    n_pairs = len(after.influence)
    if len(before.influence) != n_pairs:
        raise UserError(f"a paired change needs the same pairs: {len(before.influence)} before, {n_pairs} after")
    difference = after.value - before.value
    floor = np.hypot(before.resolution, after.resolution)
    moved = after.influence - before.influence
    spread = error_of_mean(moved)
    error = np.maximum(spread, floor)
    p = _t_test(difference, error, np.asarray(n_pairs - 1.0))
    sizes = None
    if test == "sign-flip":  # differences below float32 resolution keep the t test and its floor
        values = moved + difference
        p = np.where((difference != 0.0) & (spread > floor), sign_flip_p(values), p)
        if weights == "size":
            sizes = np.abs(values).mean(axis=0)
    return Change(difference, error, p, benjamini_hochberg(p, sizes), np.full(p.shape, n_pairs - 1.0))


def unpaired_change(before: Estimate, after: Estimate) -> Change:
    """Welch's test of every head's value, for two probes with different pairs."""
    n_before, n_after = len(before.influence), len(after.influence)
    difference = after.value - before.value
    one, other = before.standard_error**2, after.standard_error**2
    error = np.sqrt(one + other)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = error**4 / (one**2 / (n_before - 1) + other**2 / (n_after - 1))
    freedom = np.where(np.isfinite(freedom), freedom, n_before + n_after - 2.0)
    p = _t_test(difference, error, freedom)
    return Change(difference, error, p, benjamini_hochberg(p), freedom)


def benjamini_hochberg(p_value: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Adjusted p values: rejecting where the result <= q keeps the false-discovery rate at q.

    Weighted, the procedure is applied to p / weight with weights of mean 1 (Genovese, Roeder and Wasserman 2006);
    weights must be independent of p under the null hypothesis. Equal to scipy.stats.false_discovery_control(p / weight)
    but for the last bit; it stays because records contain q values.

    Args:
        p_value: any shape.
        weights: the same shape, not negative; None: equal. A weight of 0 gives an adjusted p of 1.

    Returns:
        The same shape.
    """
    p = np.asarray(p_value, np.float64)
    flat = p.ravel()
    if weights is not None and (total := np.sum(weights)) > 0.0:
        part = np.asarray(weights, np.float64).ravel() * (p.size / total)
        flat = np.divide(flat, part, out=np.full(p.size, np.inf), where=part > 0.0)
    order = np.argsort(flat, kind="stable")[::-1]
    rank = np.arange(p.size, 0, -1)
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum.accumulate(np.minimum(flat[order] * p.size / rank, 1.0))
    return adjusted.reshape(p.shape)


def significant_and_material(change: Change, level: float, threshold: float) -> Bools:
    """Where a change is significant (q value <= `level`) and material (|difference| >= `threshold`), [L, H]."""
    return (change.q_value <= level) & (np.abs(change.difference) >= threshold) & (change.difference != 0.0)


def _t_test(difference: Floats, error: Floats, freedom: Floats) -> Floats:
    t = np.divide(difference, error, out=np.zeros_like(difference), where=difference != 0.0)
    return np.where(difference == 0.0, 1.0, 2.0 * stdtr(freedom, -np.abs(t)))
