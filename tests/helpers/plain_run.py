"""A minimal run without changes."""

from pathlib import Path

import numpy as np

from headwatch.record.probe_scores import ProbeScores
from headwatch.record.run_folder import RunFolder


def write_plain_run(
    folder: Path,
    steps: list[int],
    *,
    name: str = "plain",
    layers: int = 4,
    heads: int = 4,
    gap: float = 6.0,
    status: str = "running",
    n_pairs: int = 16,
) -> RunFolder:
    """Write a run of one family with the same scores at every step, without circuits, rewards or answers."""
    rng = np.random.default_rng(0)
    shape = {"n_layers": layers, "n_heads": heads, "n_kv_heads": heads, "head_dim": 8, "d_model": 8 * heads}
    probes = {"fingerprint": "plain", "n_pairs": n_pairs, "families": ["addition"], "tokenizer": name}
    manifest = {"model": {"name": name, **shape}, "probes": probes, "trainer": "SFTTrainer", "name": name}
    run = RunFolder.create(folder / "headwatch", {**manifest, "settings": {}, "status": status, "wandb": None})
    share = rng.standard_normal((layers, heads)) / (layers * heads)
    per_pair = gap * np.exp(0.1 * rng.standard_normal(n_pairs))
    scores = -per_pair[:, None, None] * (share + 0.01 * rng.standard_normal((n_pairs, layers, heads)))
    clean = np.full(n_pairs, 3.0)
    for step in steps:
        run.write_scores(step, ProbeScores(head_scores=scores, metric_clean=clean, metric_corrupted=clean - per_pair))
    return run
