"""Head scores per family as plain rows, for printing and for JSON."""

from collections.abc import Sequence
from typing import Any

from headwatch.attribution.scores import HeadScores
from headwatch.model.head_names import head_name
from headwatch.stats import INSUFFICIENT, EvidenceSettings, carrying_set, shares, signal


def summary(
    scores: HeadScores, settings: EvidenceSettings | None = None, layers: Sequence[int] | None = None
) -> dict[str, dict[str, Any]]:
    """Summarise head scores per family.

    Args:
        scores: head scores of one or several families.
        settings: thresholds for the signal and for the active heads (default: EvidenceSettings()).
        layers: layers that have heads (of a hybrid model, `Anatomy.layers_with_heads`); None: all.

    Returns:
        family -> {"pairs", "accuracy", "metric_clean", "metric_corrupted", "signal", "heads"}. "heads" has one row
        {"head", "score", "share", "active"} per head, sorted by |score|; share and active are None when the signal is
        insufficient.
    """
    return {
        family: _family_summary(scores.select(family), settings or EvidenceSettings(), layers)
        for family in dict.fromkeys(scores.families)
    }


def _family_summary(scores: HeadScores, settings: EvidenceSettings, layers: Sequence[int] | None) -> dict[str, Any]:
    readings = scores.readings
    raw, clean, corrupted = (
        values.numpy() for values in (scores.per_pair, readings.metric_clean, readings.metric_corrupted)
    )
    status = signal(raw, clean, corrupted, settings)
    share = None if status == INSUFFICIENT else shares(raw, clean, corrupted).value
    active = None if share is None else carrying_set(share, settings.carry)
    rows = [
        {
            "head": head_name(layer, head),
            "score": score,
            "share": None if share is None else float(share[layer, head]),
            "active": None if active is None else bool(active[layer, head]),
        }
        for layer, layer_scores in enumerate(scores.mean().tolist())
        if layers is None or layer in layers
        for head, score in enumerate(layer_scores)
    ]
    return {
        "pairs": len(scores.families),
        "accuracy": float(readings.correct.float().mean()),
        "metric_clean": float(readings.metric_clean.mean()),
        "metric_corrupted": float(readings.metric_corrupted.mean()),
        "signal": status,
        "heads": sorted(rows, key=lambda row: -abs(row["score"])),
    }
