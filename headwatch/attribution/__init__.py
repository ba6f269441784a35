"""The attribution pass: exact EAP-IG scores of heads and edges, and a naive reference."""

from headwatch.attribution.metrics import METRICS, Metric, Reads
from headwatch.attribution.scores import Checks, EdgeScores, HeadScores, Readings
from headwatch.attribution.scoring import score_edges, score_heads
from headwatch.attribution.settings import ScoringSettings

__all__ = [
    "METRICS",
    "Checks",
    "EdgeScores",
    "HeadScores",
    "Metric",
    "Readings",
    "Reads",
    "ScoringSettings",
    "score_edges",
    "score_heads",
]
