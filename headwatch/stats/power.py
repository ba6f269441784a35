"""Detection power: which heads have a non-zero share, whose loss would be detected, how many pairs that takes."""

import math
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from headwatch.stats.paired_tests import Change, change, significant_and_material
from headwatch.stats.settings import EvidenceSettings
from headwatch.stats.shares import Bools, Estimate

POWER = 0.95  # the probability with which `pairs_needed` asks each head's loss to be detected


def nonzero_share(now: Estimate, settings: EvidenceSettings, threshold: float = 0.0) -> Bools:
    """Heads whose share is significantly non-zero (Benjamini-Hochberg at q over all heads) and material, [L, H].

    A large estimate that rests on a few pairs is not significant. All heads have equal weight here, whatever
    `settings.weights` is. Arguments as for `detectable`.
    """
    return significant_and_material(_loss(now, settings), settings.q, threshold)


def detectable(now: Estimate, settings: EvidenceSettings, threshold: float = 0.0) -> Bools:
    """Heads whose complete loss would be detected on these pairs.

    A lost head contributes nothing on any pair, so the paired values of its change are its current contributions with
    the sign reversed, and the p value of the loss is that of its share being 0. It must reach q / (L H), the level of
    Benjamini-Hochberg for a head of average weight when no other head changes, and the share must be material. The
    variation over pairs counts, not the size of the share alone.

    Args:
        now: the shares of one probe.
        settings: q and the test.
        threshold: the smallest change of a share that counts.

    Returns:
        bool [L, H].
    """
    loss = _loss(now, settings)
    return (loss.p_value <= settings.q / loss.p_value.size) & significant_and_material(loss, 1.0, threshold)


def pairs_needed(now: Estimate, heads: Bools, settings: EvidenceSettings, part: float = 0.9) -> int | None:
    """Approximate number of pairs needed to detect the loss of `part` of the given heads.

    Normal approximation: t = |share| / standard error grows with the root of the number of pairs and must reach the
    quantile of q / (L H) plus 1.64, which detects each loss with 95 % probability.

    Args:
        now: the shares of one probe.
        heads: bool [L, H].
        settings: q.
        part: the part of the heads.

    Returns:
        The number of pairs; None where no number is enough.
    """
    t = np.abs(now.value) / np.maximum(now.standard_error, np.finfo(np.float64).tiny)
    ranked = np.sort(t[heads])[::-1]
    weakest = ranked[math.ceil(part * len(ranked)) - 1] if len(ranked) else 0.0
    if weakest == 0.0:
        return None
    required = ndtri(POWER) - ndtri(settings.q / now.value.size / 2.0)
    return math.ceil(len(now.influence) * (required / weakest) ** 2)


def _loss(now: Estimate, settings: EvidenceSettings) -> Change:
    """The change of every head from its current value to 0, with equal weights."""
    zero = np.zeros_like(now.value)
    return change(now, Estimate(zero, np.zeros_like(now.influence), zero), replace(settings, weights="equal"))
