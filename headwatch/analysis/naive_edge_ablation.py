"""Naive reference for runs with corrupted edges: every target's input is computed from the circuit's definition.

One pair and one circuit at a time, without padding, batching or a cache. The input of target r is

    x_r - sum over edges (s, r) outside the circuit of (out_s in this run - out_s in the corrupted run),

one target after the other, with one pass of the model's own modules for each head's query, key and value.
"""

from typing import Any

import torch
from torch import Tensor, nn

from headwatch.analysis.naive_patching import one_pair
from headwatch.attribution.endpoints import first_output
from headwatch.attribution.metrics import Metric, resolve_metric
from headwatch.attribution.model_runs import query_head_copies
from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import hooked
from headwatch.model.linear_map import linear_map
from headwatch.model.parts import Kind, Projection
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet

Edges = set[tuple[str, str]]


def naive_run_circuits(
    model: nn.Module, probes: ProbeSet, circuits: list[Edges], metric: str | Metric = "logit_diff"
) -> Tensor:
    """The metric of each circuit on every pair, [C, N]; a circuit is a set of (source, target) names."""
    anatomy, (_, function) = Anatomy.of(model), resolve_metric(metric)
    values = []
    with read_only_pass(model), torch.no_grad():
        for pair in range(len(probes)):
            clean, corrupted, columns, reads = one_pair(probes, pair)
            clean_logits = anatomy.model(input_ids=clean[None], use_cache=False).logits[:, columns]
            for circuit in circuits:
                logits = _run(anatomy, clean, corrupted, circuit)[:, columns]
                values.append(function(logits, clean_logits, reads)[0])
    return torch.stack(values).unflatten(0, (len(probes), len(circuits))).T


def _run(anatomy: Anatomy, clean: Tensor, corrupted: Tensor, circuit: Edges) -> Tensor:
    there = _outputs(anatomy, corrupted)
    here: dict[str, Tensor] = {}  # filled while the model runs, source by source
    real = {
        (s, r)
        for s, row in zip(anatomy.sources, anatomy.is_real(), strict=True)
        for r, is_real in zip(anatomy.targets, row, strict=True)
        if is_real
    }
    residual: dict[int, Tensor] = {}

    def input_of(target: str, x: Tensor) -> Tensor:
        for source in anatomy.sources:
            if (source, target) in real and (source, target) not in circuit:
                x = x - (here[source] - there[source])
        return x

    def keep_residual(index: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            residual[index] = args[0]

        return hook

    def by_head(index: int, projection: Projection) -> Any:
        norm = anatomy.layers[index].attn_norm

        def state(kind: Kind, head: int) -> Tensor:
            x = input_of(f"a{index}.h{head}.{kind}", residual[index])
            x = projection.module.forward(x if norm is None else norm.module.forward(x))
            x = x if projection.norm is None else projection.norm.module.forward(x)
            heads = x[..., projection.rows(kind)].unflatten(-1, (-1, anatomy.head_dim))
            return heads[..., head if kind == "q" else head // anatomy.heads_per_kv, :]

        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            return projection.join(
                {
                    kind: torch.stack([state(kind, head) for head in range(anatomy.n_heads)], -2)
                    for kind in projection.kinds
                }
            )

        return hook

    def through_shared_norm(index: int) -> Any:
        norm: Any = anatomy.layers[index].attn_norm
        return lambda module, args: (norm.module.forward(input_of(f"m{index}", residual[index])), *args[1:])

    def corrupt(target: str) -> Any:
        return lambda module, args: (input_of(target, args[0]), *args[1:])

    handles = _source_hooks(anatomy, here)
    for index, layer in enumerate(anatomy.layers):
        handles.append(anatomy.decoder_layers[index].register_forward_pre_hook(keep_residual(index)))
        handles += [
            projection.last.register_forward_hook(by_head(index, projection)) for projection in layer.projections
        ]
        at_mlp = through_shared_norm(index) if layer.shared_norm else corrupt(f"m{index}")
        handles.append(layer.mlp_reads.register_forward_pre_hook(at_mlp))
    handles.append(anatomy.final_norm.register_forward_pre_hook(corrupt("logits")))
    with hooked(*handles), query_head_copies(anatomy):
        logits: Tensor = anatomy.model(input_ids=clean[None], use_cache=False).logits
    return logits


def _outputs(anatomy: Anatomy, ids: Tensor) -> dict[str, Tensor]:
    """What every source adds to the residual stream, [1, T, M] each."""
    found: dict[str, Tensor] = {}
    with hooked(*_source_hooks(anatomy, found)):
        anatomy.model(input_ids=ids[None], use_cache=False)
    return found


def _source_hooks(anatomy: Anatomy, found: dict[str, Tensor]) -> list[Any]:
    def at_attention(index: int) -> Any:
        layer = anatomy.layers[index]

        def hook(module: Any, args: Any, output: Tensor) -> None:
            weight, _ = linear_map(layer.out, anatomy.n_heads * anatomy.head_dim)
            for head in range(anatomy.n_heads):
                columns = slice(head * anatomy.head_dim, (head + 1) * anatomy.head_dim)
                own = args[0][..., columns] @ weight[:, columns].T.to(output)
                if (norm := layer.attn_post_norm) is not None:  # the head's part of the norm's output
                    own = norm.weight * own / (output.square().mean(-1, keepdim=True) + norm.eps).sqrt()
                found[f"a{index}.h{head}"] = own * layer.multiplier

        return hook

    def at_mlp(index: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[f"m{index}"] = first_output(output, args) * anatomy.layers[index].multiplier

        return hook

    def at_input(module: Any, args: Any) -> None:
        found["input"] = args[0]

    handles = [anatomy.decoder_layers[0].register_forward_pre_hook(at_input)]
    for index, layer in enumerate(anatomy.layers):
        handles.append(layer.out.register_forward_hook(at_attention(index)))
        handles.append(layer.mlp_adds[0].register_forward_hook(at_mlp(index)))
    return handles
