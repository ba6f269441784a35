"""Which heads are known to be at work, and of which the loss would be told: how far the pairs can see. Pure numpy."""

import math
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from headwatch.stats.paired_tests import Change, change, significant_and_material
from headwatch.stats.settings import EvidenceSettings
from headwatch.stats.shares import Bools, Estimate

SURE = 0.95


def nonzero_share(now: Estimate, settings: EvidenceSettings, least: float = 0.0) -> Bools:
    """Heads whose share is significantly other than 0 (Benjamini-Hochberg at q over all heads) and material, [L, H].

    A large estimate that hangs on a few pairs is not enough: of such a head it cannot be said that it joined the work
    or left it. Its size gives it no advantage here, whatever the weights of changes. Arguments as for `detectable`.
    """
    return significant_and_material(_loss(now, settings), settings.q, least)


def detectable(now: Estimate, settings: EvidenceSettings, least: float = 0.0) -> Bools:
    """Heads whose complete loss would be told on these pairs, bool [L, H].

    A head that is gone contributes nothing on any pair. The paired values of its change are then its contributions of
    now with the other sign, so that the p of its loss is known in advance: that of its share being 0. It has to reach
    q / (L H), what Benjamini-Hochberg asks of a head of average weight where no other has changed, and the share has to
    be material. A head's size alone does not decide: what counts is how much it differs from pair to pair.

    Args:
        now: the shares of one probe.
        settings: q and the test.
        least: the smallest change that counts.
    """
    loss = _loss(now, settings)
    return (loss.p_value <= settings.q / loss.p_value.size) & significant_and_material(loss, 1.0, least)


def pairs_needed(now: Estimate, heads: Bools, settings: EvidenceSettings, part: float = 0.9) -> int | None:
    """About so many pairs of the same kind resolve this part of these heads, with 95 % probability each.

    By the normal approximation: t = |share| / standard error grows with the root of the number of pairs, and has to be
    the quantile of q / (L H) and 1.64 more. None where no number does.
    """
    t = np.abs(now.value) / np.maximum(now.standard_error, np.finfo(np.float64).tiny)
    ranked = np.sort(t[heads])[::-1]
    weakest = ranked[math.ceil(part * len(ranked)) - 1] if len(ranked) else 0.0
    if weakest == 0.0:
        return None
    wanted = ndtri(SURE) - ndtri(settings.q / now.value.size / 2.0)
    return math.ceil(len(now.influence) * (wanted / weakest) ** 2)


def _loss(now: Estimate, settings: EvidenceSettings) -> Change:
    """The change of every head if it stopped, each head weighing the same."""
    nothing = np.zeros_like(now.value)
    return change(now, Estimate(nothing, np.zeros_like(now.influence), nothing), replace(settings, weights="equal"))
