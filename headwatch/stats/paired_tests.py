"""Which differences between two probes are real: paired tests, an unpaired one, and false-discovery control."""

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
    """A change of every head's value: `difference` = after - before; all fields [L, H] (or [P, L, H] over probes).

    q_value: Benjamini-Hochberg over the heads of one probe, weighted as the settings say. freedom: the standard error's
    degrees of freedom.
    """

    difference: Floats
    standard_error: Floats
    p_value: Floats
    q_value: Floats
    freedom: Floats

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """(lower, upper) of the difference: Student's interval, for each head by itself."""
        reach = stdtrit(self.freedom, 0.5 + level / 2.0) * self.standard_error
        return self.difference - reach, self.difference + reach


def change(before: Estimate, after: Estimate, settings: EvidenceSettings) -> Change:
    """The change by the test and the weights that the settings name."""
    if settings.test == "welch":
        return unpaired_change(before, after)
    return paired_change(before, after, settings.test, settings.weights)


def paired_change(before: Estimate, after: Estimate, test: str = "t", weights: str = "equal") -> Change:
    """Two-sided paired test of every head's value, on the same pairs in the same order.

    v_i = after.influence_i - before.influence_i + difference; its mean is the difference, and standard error =
    sd(v) / sqrt(N). test: "t" (N - 1 degrees of freedom) or "sign-flip" (permutation distribution of the mean of v).
    A difference of exactly zero has p = 1. q_value is Benjamini-Hochberg over all heads, weighted under "sign-flip" and
    weights="size" by the mean |v_i| of each head: most of q goes to the heads whose pairs moved farthest, whether up
    or down. Such weights look at sizes alone, and flipping signs leaves every size as it is: where nothing changed p
    is as uniform given the weights as without (weights that say nothing of a true null's p keep the level: Genovese,
    Roeder and Wasserman 2006). A t test has no such property, and weighs all heads equally.

    What it promises, and where it does not hold (noise that is far from symmetric): docs/evidence/validity.md.
    """
    n_pairs = len(after.influence)
    if len(before.influence) != n_pairs:
        raise UserError(f"a paired change needs the same pairs: {len(before.influence)} before, {n_pairs} after")
    difference = after.value - before.value
    floor = np.hypot(before.resolution, after.resolution)
    apart = after.influence - before.influence
    spread = error_of_mean(apart)
    error = np.maximum(spread, floor)
    p = _t_test(difference, error, np.asarray(n_pairs - 1.0))
    sizes = None
    if test == "sign-flip":  # what float32 cannot tell apart stays with the t test and its floor
        values = apart + difference
        p = np.where((difference != 0.0) & (spread > floor), sign_flip_p(values), p)
        if weights == "size":
            sizes = np.abs(values).mean(axis=0)
    return Change(difference, error, p, benjamini_hochberg(p, sizes), np.full(p.shape, n_pairs - 1.0))


def unpaired_change(before: Estimate, after: Estimate) -> Change:
    """Welch's test of every head's value where the pairs of the two probes are different ones."""
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
    """Adjusted p values of any shape: rejecting where the result <= q keeps the false-discovery rate at q.

    weights: of that shape, not negative, how much of q each hypothesis may spend (None: all the same). The rule is
    applied to p / weight, the weights' mean being 1 (Genovese, Roeder and Wasserman 2006). A hypothesis without
    weight gets 1. The weights must say nothing of p where nothing is true.
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


def significant_and_material(change: Change, level: float, least: float) -> Bools:
    """Where a change is significant at `level` (q value) and material (at least `least` in size)."""
    return (change.q_value <= level) & (np.abs(change.difference) >= least) & (change.difference != 0.0)


def _t_test(difference: Floats, error: Floats, freedom: Floats) -> Floats:
    t = np.divide(difference, error, out=np.zeros_like(difference), where=difference != 0.0)
    return np.where(difference == 0.0, 1.0, 2.0 * stdtr(freedom, -np.abs(t)))
