"""headwatch: watch, live, which attention heads post-training creates, keeps and throws away, next to the reward.

>>> import headwatch as hw
>>> probes = hw.ProbeSet.generate("addition", tokenizer)                # doctest: +SKIP
>>> hw.score_heads(model, probes).mean()                                # doctest: +SKIP
>>> trainer = GRPOTrainer(..., callbacks=[hw.HeadWatchCallback()])      # doctest: +SKIP
"""

__version__ = "0.1.0"

from headwatch.anatomy import Anatomy
from headwatch.attribution import EdgeScores, HeadScores, score_edges, score_heads
from headwatch.callback import HeadWatchCallback
from headwatch.circuit import Circuit
from headwatch.errors import UnsupportedModelError, UserError
from headwatch.evidence import EvidenceSettings
from headwatch.guard import read_only_pass
from headwatch.history import HeadHistory, effect
from headwatch.probes import ProbeSet
from headwatch.run_folder import RunFolder

__all__ = [
    "Anatomy",
    "Circuit",
    "EdgeScores",
    "EvidenceSettings",
    "HeadHistory",
    "HeadScores",
    "HeadWatchCallback",
    "ProbeSet",
    "RunFolder",
    "UnsupportedModelError",
    "UserError",
    "effect",
    "read_only_pass",
    "score_edges",
    "score_heads",
]
