"""Manifests and scores of a record of two layers of three heads and five pairs."""

from typing import Any

import numpy as np

from headwatch.record.probe_scores import ProbeScores

MANIFEST = {
    "model": {"n_layers": 2, "n_heads": 3},
    "probes": {"n_pairs": 5, "families": ["addition"]},
    "status": "running",
}
TWO_FAMILIES = {**MANIFEST, "probes": {"n_pairs": 5, "families": ["addition", "recall"]}}


def scores(seed: int = 0, n_pairs: int = 5, **more: Any) -> ProbeScores:
    rng = np.random.default_rng(seed)
    clean = rng.standard_normal(n_pairs)
    return ProbeScores(rng.standard_normal((n_pairs, 2, 3)), clean, clean - 3.0, **more)
