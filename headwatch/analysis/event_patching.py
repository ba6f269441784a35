"""Exact patching of events: which heads to patch at a probe, and their effects by family."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwatch.analysis.patching import patch_heads
from headwatch.attribution.per_family import Metrics
from headwatch.lives.history import HeadHistory
from headwatch.model.head_names import Head
from headwatch.probes import ProbeSet
from headwatch.stats import OK

PATCHING = ("events", "all", "none")
BASE_FACTOR = 3.0
HeadsByFamily = Mapping[str, Sequence[Head]]


def heads_to_patch(history: HeadHistory, patching: str, forward_passes: float) -> list[Head]:
    """The heads of one family to patch at its last probe.

    At the base probe these are candidates of later events, by |share|; at the others, the heads of new events, by the
    size of the change. With "events" they cost no more than `forward_passes`, or at the base probe, once per run,
    BASE_FACTOR times as much; with "all" every head is patched at the base probe and every event at the others.

    Args:
        history: the family's history by the evidence rule, with the last probe.
        patching: "events", "all" or "none".
        forward_passes: budget, in forward passes over the family's pairs.
    """
    if patching == "none" or not history.steps or history.signal[-1] != OK:
        return []
    step = history.steps[-1]
    if step == history.base_step:
        share = np.where(history.has_head, np.abs(history.share[-1]), -1.0)
        order = np.argsort(-share, axis=None, kind="stable")
        forward_passes *= BASE_FACTOR
        ranked = [(int(i) // history.n_heads, int(i) % history.n_heads) for i in order[: history.total_heads]]
    else:
        new = [event for event in history.events if event.step == step]
        new.sort(key=lambda event: -abs(event.difference or 0.0))
        ranked = list(dict.fromkeys((event.layer, event.head) for event in new))
    return ranked if patching == "all" else _affordable(ranked, history.n_layers, forward_passes)


def _affordable(ranked: Sequence[Head], n_layers: int, forward_passes: float) -> list[Head]:
    """The first heads that fit into the budget; a run of a head of layer l skips the l layers before it."""
    found: list[Head] = []
    for head in ranked:
        forward_passes -= (n_layers - head[0]) / n_layers
        if forward_passes < 0.0:
            break
        found.append(head)
    return found


def patch_families(
    model: nn.Module, probes: ProbeSet, metrics: Metrics, heads: HeadsByFamily, shape: tuple[int, int], **options: Any
) -> Tensor:
    """Exact effects (noising) of each family's heads on its pairs.

    Args:
        model: the model.
        probes: the pairs.
        metrics: the metric of each family.
        heads: the heads of each family.
        shape: (L, H).
        options: of `patch_heads`: batch_size, memory_budget_gb, optimizer, progress.

    Returns:
        float32 [N, L, H]; NaN where a head was not patched.
    """
    effects = torch.full((len(probes), *shape), float("nan"))
    for family, chosen in heads.items():
        rows = [row for row, name in enumerate(probes.families) if name == family]
        if not rows or not chosen:
            continue
        pairs = probes if len(rows) == len(probes) else probes.select(rows)
        found = patch_heads(model, pairs, chosen, metrics[family], "noising", **options)
        layers, places = (torch.tensor(numbers) for numbers in zip(*found.heads, strict=True))
        effects[torch.tensor(rows)[:, None], layers, places] = found.per_pair.float()
    return effects
