"""Evidence: which changes of a head's share are real, from per-pair scores of frozen pairs. Pure numpy.

The pairs never change, so a head is compared with itself pair by pair, which cancels most of the sampling noise that
drowns membership counts. A *share* is a ratio of means, mean head score / mean (metric_corrupted - metric_clean), so
its change is tested by linearised per-pair influence values. Nothing here reads or moves a global random state.
"""

from headwatch.stats.bootstrap import (
    NullBand,
    bootstrap_effect,
    bootstrap_importance,
    bootstrap_shares,
    null_band,
    split_half_agreement,
)
from headwatch.stats.paired_tests import (
    Change,
    benjamini_hochberg,
    change,
    paired_change,
    significant_and_material,
    unpaired_change,
)
from headwatch.stats.power import detectable, nonzero_share, pairs_needed
from headwatch.stats.ranks import ranks, spearman
from headwatch.stats.settings import EvidenceSettings
from headwatch.stats.shares import (
    INSUFFICIENT,
    OK,
    Estimate,
    Shares,
    carrying_set,
    gap_t,
    importance,
    interval,
    membership,
    raw_scores,
    shares,
    signal,
)
from headwatch.stats.sign_flip import sign_flip_p

__all__ = [
    "INSUFFICIENT",
    "OK",
    "Change",
    "Estimate",
    "EvidenceSettings",
    "NullBand",
    "Shares",
    "benjamini_hochberg",
    "bootstrap_effect",
    "bootstrap_importance",
    "bootstrap_shares",
    "carrying_set",
    "change",
    "detectable",
    "gap_t",
    "importance",
    "interval",
    "membership",
    "nonzero_share",
    "null_band",
    "paired_change",
    "pairs_needed",
    "ranks",
    "raw_scores",
    "shares",
    "sign_flip_p",
    "signal",
    "significant_and_material",
    "spearman",
    "split_half_agreement",
    "unpaired_change",
]
