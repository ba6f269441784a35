"""Naive reference for exact patching: one pair and one head at a time, without padding, batching or a cache."""

from typing import Any

import torch
from torch import Tensor, nn

from headwatch.analysis.patching import HeadPatches
from headwatch.attribution.metrics import Metric, Reads, resolve_metric
from headwatch.attribution.scores import Readings
from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import hooked
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet


def naive_patch_heads(model: nn.Module, probes: ProbeSet, metric: str | Metric = "logit_diff") -> HeadPatches:
    """`patch_heads` of all heads in both directions, by the definition."""
    anatomy, (name, function) = Anatomy.of(model), resolve_metric(metric)
    heads = [(layer, head) for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads)]
    noising, denoising, values = [], [], []
    with read_only_pass(model), torch.no_grad():
        for pair in range(len(probes)):
            clean, corrupted, columns, reads = one_pair(probes, pair)
            clean_logits, clean_z = _run(anatomy, clean)
            corrupted_logits, corrupted_z = _run(anatomy, corrupted)

            def value(logits: Tensor) -> Tensor:
                return function(logits[:, columns], clean_logits[:, columns], reads)[0]  # noqa: B023

            at_clean, at_corrupted = value(clean_logits), value(corrupted_logits)
            values.append(torch.stack([at_clean, at_corrupted]))
            noising.append(
                torch.stack([value(_run(anatomy, clean, head, corrupted_z)[0]) - at_clean for head in heads])
            )
            denoising.append(
                torch.stack([at_corrupted - value(_run(anatomy, corrupted, head, clean_z)[0]) for head in heads])
            )
    both = torch.stack(values, 1)
    readings = Readings(both[0], both[1], torch.zeros(len(probes), dtype=torch.bool))
    return HeadPatches(tuple(heads), torch.stack(noising), torch.stack(denoising), readings, probes.families, name)


def one_pair(probes: ProbeSet, pair: int) -> tuple[Tensor, Tensor, Tensor, Reads]:
    """Token ids [T] of both prompts without padding, the columns that are read [P], and the reads of one pair."""
    real, present = probes.attention_mask[pair].bool(), probes.read_positions[pair] >= 0
    columns = probes.read_positions[pair, present] - int(real.int().argmax())
    reads = Reads(
        probes.answers[[pair]], probes.targets[[pair]][:, present], torch.ones(1, len(columns), dtype=torch.bool)
    )
    return probes.clean[pair, real], probes.corrupted[pair, real], columns, reads


def _run(
    anatomy: Anatomy, ids: Tensor, head: tuple[int, int] | None = None, donor: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits [1, T, V] and every layer's z [T, H D] of one run; with `head`, its z comes from `donor`."""
    kept: list[Tensor] = [torch.empty(0)] * anatomy.n_layers

    def at_z(index: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            if head is not None and donor is not None and head[0] == index:
                columns = slice(head[1] * anatomy.head_dim, (head[1] + 1) * anatomy.head_dim)
                z[0, :, columns] = donor[index][:, columns]
            kept[index] = z[0]
            return (z, *args[1:])

        return hook

    with hooked(*(layer.out.register_forward_pre_hook(at_z(i)) for i, layer in enumerate(anatomy.layers))):
        logits: Tensor = anatomy.model(input_ids=ids[None], use_cache=False).logits
    return logits, kept
