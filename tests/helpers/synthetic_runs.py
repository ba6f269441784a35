"""A small, deterministic run written through RunFolder, with planted per-pair effects: for tests of readers.

`planted` gives the heads and `plan` the times: in each family some heads gain or lose share, in the second family a
tenth of the run later than in the first; everything else is noise.
"sft": gains come early and stay. "grpo": gains come and go with the reward, and one comes back.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch import stats
from headwatch.lives.events import Event
from headwatch.lives.history import HeadHistory
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.run_folder import RunFolder

Floats = NDArray[np.float64]
SIZE = 0.12  # largest share that a planted head gains; the largest base head has about 0.14


def planted(
    n_layers: int, n_heads: int, n_families: int, seed: int
) -> tuple[list[Floats], list[list[tuple[int, int]]]]:
    """Base shares [L, H] of each family, and its planted heads: the last two are base heads that fade."""
    rng = np.random.default_rng([seed, 1])
    bases, moved = [], []
    for _ in range(n_families):
        ranks = rng.permutation(n_layers * n_heads)
        base = (0.14 * np.exp(-ranks / 5.0) * np.where(ranks % 5 == 4, -1.0, 1.0)).reshape(n_layers, n_heads)
        order = np.argsort(ranks)  # heads from the strongest to the weakest
        late = [int(h) for h in order if ranks[h] >= 25]
        chosen = [*late[:5], int(order[1]), int(order[3])]
        bases.append(base)
        moved.append([(h // n_heads, h % n_heads) for h in chosen])
    return bases, moved


def plan(kind: str, x: float) -> list[float]:
    """Change of each of the seven planted heads at x in [0, 1] of the run, as a fraction of its largest change."""
    if kind == "sft":  # two of five emerge at once, the others later; all stay
        return [float(x > start) for start in (0.0, 0.0, 0.25, 0.45, 0.65)] + [
            min(1.0, max(0.0, 2.0 * x)),
            float(x > 0.55),
        ]
    return [
        float(0.0 < x < 0.35),  # emerges, is pruned
        float(0.15 < x < 0.45 or x > 0.65),  # emerges, is pruned, comes back
        float(0.35 < x < 0.75),
        float(x > 0.55),
        float(x > 0.85),
        float(x > 0.45),
        0.0,
    ]


def write_synthetic_run(
    folder: str | Path,
    *,
    kind: str = "grpo",
    seed: int = 0,
    n_layers: int = 8,
    n_heads: int = 6,
    n_pairs: int = 32,
    steps: Sequence[int] = range(0, 101, 10),
    families: Sequence[str] = ("addition", "recall"),
) -> RunFolder:
    """Write a whole run ("grpo" or "sft") of n_pairs pairs per family; returns its folder, with status "finished"."""
    if kind not in ("grpo", "sft"):
        raise ValueError(f"kind={kind!r}: give 'grpo' or 'sft'")
    steps, families = [int(s) for s in steps], tuple(families)
    if n_layers * n_heads < 32:
        raise ValueError(f"n_layers={n_layers}, n_heads={n_heads}: the plan needs at least 32 heads")
    rng = np.random.default_rng([seed, 0])
    bases, moved = planted(n_layers, n_heads, len(families), seed)
    shape = (n_pairs, n_layers, n_heads)
    run = RunFolder.create(folder, _manifest(kind, seed, n_layers, n_heads, n_pairs, families))
    # Constant per pair over all steps: the paired tests cancel it.
    gap_size = [np.exp(0.3 * rng.standard_normal(n_pairs)) for _ in families]
    pair_offset = [0.35 * rng.standard_normal(shape) * (np.abs(base) + 0.01) for base in bases]
    real = _real_edges(n_layers, n_heads)
    lives = [
        (HeadHistory(n_layers, n_heads, family=f), HeadHistory(n_layers, n_heads, rule="circuit", family=f))
        for f in families
    ]
    for step in steps:
        x = step / max(steps[-1], 1)
        parts: dict[str, list[NDArray[Any]]] = {}
        events: list[Event] = []
        scalars: dict[str, float] = {}
        for f, name in enumerate(families):
            share = _shares_at(kind, x - 0.1 * f, bases[f], moved[f])
            gap = -6.0 * (1.0 - 0.25 * x) * gap_size[f] * np.exp(0.02 * rng.standard_normal(n_pairs))
            drift = 0.1 * x * rng.standard_normal(shape) * (np.abs(share) + 0.004)
            scores = gap[:, None, None] * (share + pair_offset[f] + drift)
            clean = -0.55 * gap + 0.2 * rng.standard_normal(n_pairs)
            edges = _edges(np.abs(scores).mean(axis=0), real, rng)
            active, stability, importance, draws, chance = _circuit(scores, seed)
            for key, array in (
                ("head_scores", scores),
                ("metric_clean", clean),
                ("metric_corrupted", clean + gap),
                ("correct", rng.random(n_pairs) < 0.6 + 0.3 * x),
                ("kl_from_base", 0.2 * x * rng.gamma(2.0, 0.5, n_pairs)),
                ("circuit_active", active[None]),
                ("circuit_stability", stability[None]),
                ("importance", importance[None]),
                ("importance_draws", draws[None]),
                ("edges_mean_abs", edges[None]),
            ):
                parts.setdefault(key, []).append(array)
            by_evidence, by_circuit = lives[f]
            events += by_evidence.add(step, scores, clean, clean + gap)
            events += by_circuit.add_membership(step, active, importance, stability, draws)
            scalars |= {f"{name}/{key}": value for key, value in by_evidence.latest_scalars().items()}
            scalars |= {f"{name}/circuit/{key}": value for key, value in by_circuit.latest_scalars().items()}
            scalars |= {f"{name}/circuit/membership_changes_by_chance_{end}": n for end, n in chance.items()}
            scalars[f"{name}/accuracy"] = float(np.mean(parts["correct"][-1].astype(np.float64)))
        run.write_scores(step, ProbeScores(**{key: np.concatenate(arrays) for key, arrays in parts.items()}))
        run.append_events(events)
        run.append_scalars(
            step, {**scalars, "seconds": 1.0 + 0.1 * rng.random(), "peak_memory_mb": 512.0, "completeness_error": 0.01}
        )
    newly = np.sum([history.newly_active() for history, _ in lives], axis=0)
    _write_training(run, kind, steps, newly, rng)
    run.update_manifest(status="finished")
    return run


def _shares_at(kind: str, x: float, base: Floats, moved: list[tuple[int, int]]) -> Floats:
    share = base.copy()
    for index, (head, change) in enumerate(zip(moved, plan(kind, x), strict=True)):
        share[head] = share[head] + change * SIZE if index < 5 else share[head] * (1.0 - 0.98 * change)
    return share


def _circuit(scores: Floats, seed: int) -> tuple[NDArray[np.bool_], Floats, Floats, Floats, dict[str, int]]:
    """Heads that carry half of the mean |score|, their stability, importance, its 50 draws, and the null band."""

    def rule(mean: Floats) -> tuple[NDArray[np.bool_], Floats]:
        kept = stats.carrying_set(mean, 0.5)
        return kept, mean * kept / (mean * kept).sum()

    strength = np.abs(scores)
    active, importance = rule(strength.mean(axis=0))
    rng = np.random.default_rng([seed, 2])
    samples = rng.integers(len(scores), size=(50, len(scores)))  # the same at every probe
    results = [rule(strength[rows].mean(axis=0)) for rows in samples]
    draws = np.array([drawn for _, drawn in results], np.float32)
    halves = [np.array_split(rng.permutation(len(scores)), 2) for _ in range(10)]
    changes = [int((rule(strength[a].mean(axis=0))[0] ^ rule(strength[b].mean(axis=0))[0]).sum()) for a, b in halves]
    chance = {"low": min(changes), "high": max(changes)}
    return active, np.mean([kept for kept, _ in results], axis=0), importance, draws, chance


def _real_edges(n_layers: int, n_heads: int) -> NDArray[np.bool_]:
    """The edges that exist, [S, R]: from input, heads and MLPs to each head's q, k and v, each MLP and the logits."""
    a_layer, b_layer = n_heads + 1, 3 * n_heads + 1
    real = np.zeros((1 + n_layers * a_layer, n_layers * b_layer + 1), np.bool_)
    for layer in range(n_layers):
        before = 1 + layer * a_layer
        real[:before, layer * b_layer : (layer + 1) * b_layer - 1] = True
        real[: before + n_heads, (layer + 1) * b_layer - 1] = True
    real[:, -1] = True
    return real


def _edges(strength: Floats, real: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """Mean |edge score| [S, R]: a source's strength times a random factor per target."""
    n_layers, n_heads = strength.shape
    source = np.full((real.shape[0],), 2.0 * strength.mean())
    source[1:].reshape(n_layers, n_heads + 1)[:, :n_heads] = strength
    return real * source[:, None] * rng.gamma(0.3, 0.2, real.shape)


def _write_training(run: RunFolder, kind: str, steps: list[int], newly: Floats, rng: np.random.Generator) -> None:
    """A row every 5 steps; under "grpo" the reward rises with the number of newly active heads."""
    for step in range(5, steps[-1] + 1, 5):
        x = step / steps[-1]
        row: dict[str, float] = {"epoch": x, "grad_norm": 1.0 + 0.1 * rng.random(), "learning_rate": 1e-5 * (1.0 - x)}
        if kind == "sft":
            row |= {"loss": 0.6 + 1.4 * math.exp(-3.0 * x) + 0.03 * rng.standard_normal()}
            row |= {"mean_token_accuracy": 0.85 - 0.3 * math.exp(-3.0 * x) + 0.01 * rng.standard_normal()}
        else:
            heads = float(np.interp(step, steps, newly))
            row |= {"loss": 0.02 * rng.standard_normal(), "reward_std": 0.2, "entropy": 0.8 - 0.3 * x}
            row |= {"reward": 0.2 + 0.06 * heads + 0.03 * rng.standard_normal()}
        run.append_training(step, row)
    run.append_training(steps[-1], {"train_runtime": 12.5, "train_loss": 0.7})


def _manifest(
    kind: str, seed: int, n_layers: int, n_heads: int, n_pairs: int, families: Sequence[str]
) -> dict[str, object]:
    sources = ["input"]
    for layer in range(n_layers):
        sources += [f"a{layer}.h{head}" for head in range(n_heads)] + [f"m{layer}"]
    return {
        "headwatch_version": "0",
        "versions": {"numpy": np.__version__},
        "created": "2026-01-01T00:00:00+00:00",
        "settings": {"every": 10, "metric": "logit_diff"},
        "model": {
            "name": "synthetic",
            "n_layers": n_layers,
            "n_heads": n_heads,
            "n_kv_heads": n_heads,
            "head_dim": 8,
            "d_model": 8 * n_heads,
            "sources": sources,
        },
        "probes": {
            "fingerprint": f"{seed:016x}",
            "n_pairs": n_pairs * len(families),
            "families": list(families),
            "pair_families": [f for f in range(len(families)) for _ in range(n_pairs)],
            "tokenizer": "synthetic",
        },
        "trainer": {"sft": "SFTTrainer", "grpo": "GRPOTrainer"}[kind],
        "name": f"synthetic-{kind}",
        "wandb": None,
        "status": "running",
    }
