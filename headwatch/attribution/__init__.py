"""The attribution pass: EAP-IG scores of heads and edges, exact and fast, beside a naive reference."""

from headwatch.attribution.metrics import METRICS, Metric, Reads
from headwatch.attribution.scores import Checks, EdgeScores, HeadScores, Readings
from headwatch.attribution.scoring import score_edges, score_heads

__all__ = ["METRICS", "Checks", "EdgeScores", "HeadScores", "Metric", "Readings", "Reads", "score_edges", "score_heads"]
