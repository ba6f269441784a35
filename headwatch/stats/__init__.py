"""Which changes of a head's share are real: statistics of per-pair scores on frozen pairs. numpy and scipy only.

The pairs never change, so each head is compared with itself pair by pair, which cancels most of the sampling noise of
membership counts. A *share* is a ratio of means, mean head score / mean (metric_corrupted - metric_clean); its change
is tested with linearised per-pair influence values. No function reads or changes a global random state.
"""

from headwatch.stats.bootstrap import NullBand, bootstrap_importance, null_band, pair_weights, split_half_agreement
from headwatch.stats.lagged_correlation import spearman
from headwatch.stats.paired_tests import (
    Change,
    benjamini_hochberg,
    change,
    paired_change,
    significant_and_material,
    unpaired_change,
)
from headwatch.stats.power import detectable, nonzero_share, pairs_needed
from headwatch.stats.settings import EvidenceSettings
from headwatch.stats.shares import (
    INSUFFICIENT,
    OK,
    Estimate,
    carrying_set,
    gap_t,
    interval,
    membership,
    raw_scores,
    share_importance,
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
    "benjamini_hochberg",
    "bootstrap_importance",
    "carrying_set",
    "change",
    "detectable",
    "gap_t",
    "interval",
    "membership",
    "nonzero_share",
    "null_band",
    "pair_weights",
    "paired_change",
    "pairs_needed",
    "raw_scores",
    "share_importance",
    "shares",
    "sign_flip_p",
    "signal",
    "significant_and_material",
    "spearman",
    "split_half_agreement",
    "unpaired_change",
]
