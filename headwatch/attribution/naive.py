"""Naive reference for the fast pass: the definition of the scores, computed by autograd.

One pair and one point of the path at a time, without padding, batching or a key/value cache. Every target reads its own
copy of the residual vector, and autograd computes the gradient at that copy.

    edge(s, r) = sum_t  delta_s[t] . (1/m) sum_k dL/d(input of r)[t]   at embeddings e' + alpha_k (e - e')
"""

from typing import Any

import torch
from torch import Tensor, nn

from headwatch.attribution.metrics import Metric, Reads, resolve_metric
from headwatch.attribution.model_runs import query_head_copies
from headwatch.attribution.path import path_points
from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import hooked
from headwatch.model.linear_map import linear_map
from headwatch.model.parts import KINDS, Kind, Projection
from headwatch.model.read_only import read_only_pass
from headwatch.probes import ProbeSet


def naive_edges(
    model: nn.Module, probes: ProbeSet, metric: str | Metric = "logit_diff", steps: int = 5, alphas: str = "midpoint"
) -> Tensor:
    """Edge scores by the definition, [N, S, R], in the model's dtype."""
    anatomy = Anatomy.of(model)
    name, function = resolve_metric(metric)
    points = path_points(alphas, steps, name)
    with read_only_pass(model):
        return torch.stack([_pair(anatomy, probes, pair, function, points) for pair in range(len(probes))])


def naive_heads(
    model: nn.Module, probes: ProbeSet, metric: str | Metric = "logit_diff", steps: int = 5, alphas: str = "midpoint"
) -> Tensor:
    """Head scores by the definition, [N, L, H]: delta_s . mean over alphas of dL/d(output of s), as a row sum."""
    anatomy = Anatomy.of(model)
    rows = naive_edges(model, probes, metric, steps, alphas).sum(-1)
    return torch.stack([rows[:, anatomy.head_source(layer)] for layer in range(anatomy.n_layers)], 1)


def _pair(anatomy: Anatomy, probes: ProbeSet, pair: int, metric: Metric, points: list[float]) -> Tensor:
    real = probes.attention_mask[pair].bool()
    device = next(anatomy.model.parameters()).device
    clean, corrupted = probes.clean[pair, real].to(device), probes.corrupted[pair, real].to(device)
    present = probes.read_positions[pair] >= 0
    columns = (probes.read_positions[pair, present] - int(real.int().argmax())).to(device)
    reads = Reads(
        probes.answers[[pair]].to(device),
        probes.targets[[pair]][:, present].to(device),
        torch.ones(1, len(columns), dtype=torch.bool, device=device),
    )

    with torch.no_grad():
        clean_logits, clean_outputs, e = _outputs(anatomy, clean)
        _, corrupted_outputs, e_corrupted = _outputs(anatomy, corrupted)
    delta = corrupted_outputs - clean_outputs  # [S, T, M]

    gradient = torch.zeros(len(anatomy.targets), *delta.shape[1:], dtype=delta.dtype, device=device)  # [R, T, M]
    for alpha in points:
        x = (e_corrupted + alpha * (e - e_corrupted)).requires_grad_()
        logits, copies = _run_with_copies(anatomy, x)
        value = metric(logits[:, columns], clean_logits[:, columns], reads).sum()
        existing = anatomy.is_real().any(0)
        grads = torch.autograd.grad(value, [copy for copy, exists in zip(copies, existing, strict=True) if exists])
        gradient[existing] += torch.stack(grads).squeeze(1) / len(points)
    edges = torch.einsum("stm,rtm->sr", delta, gradient)
    return edges * anatomy.is_real().to(edges)


def _outputs(anatomy: Anatomy, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One run: logits [1, T, V], what every source adds to the residual stream [S, T, M], and embeddings [1, T, M]."""
    states: dict[Any, Tensor] = {}

    def keep_input(key: Any) -> Any:
        return lambda module, args: states.__setitem__(key, args[0])

    def keep_output(key: Any) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            first = first.view_as(args[0]) if first.dim() == 2 and args[0].dim() == 3 else first
            states[key] = states[key] + first if key in states else first  # several MLPs are one source

        return hook

    handles = [
        anatomy.embedding.register_forward_hook(keep_output("e")),
        anatomy.decoder_layers[0].register_forward_pre_hook(keep_input("input")),
    ]
    for index, layer in enumerate(anatomy.layers):
        if layer.whole:
            handles.append(layer.mlp.register_forward_pre_hook(keep_input(("whole", index))))
            handles.append(layer.mlp.register_forward_hook(keep_output(("mlp", index))))
            continue
        handles.append(layer.out.register_forward_pre_hook(keep_input(("z", index))))
        handles.append(layer.out.register_forward_hook(keep_output(("attention", index))))
        handles += [module.register_forward_hook(keep_output(("mlp", index))) for module in layer.mlp_adds]
    with hooked(*handles):
        logits = anatomy.model(input_ids=ids[None], use_cache=False).logits

    outputs = [states["input"][0]]
    for index, layer in enumerate(anatomy.layers):
        if layer.whole:  # no heads; what the layer adds to its input
            node = states["mlp", index][0] - states["whole", index][0]
            outputs += [torch.zeros_like(node)] * anatomy.n_heads + [node]
            continue
        weight, _ = linear_map(layer.out, anatomy.n_heads * anatomy.head_dim)
        for head in range(anatomy.n_heads):
            columns = slice(head * anatomy.head_dim, (head + 1) * anatomy.head_dim)
            output = states["z", index][0][:, columns] @ weight[:, columns].T.to(logits)  # z_h W_O^T
            if (norm := layer.attn_post_norm) is not None:  # the head's part of the norm's output
                whole = states["attention", index][0]
                output = norm.weight * output / (whole.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            outputs.append(output * layer.multiplier)
        outputs.append(states["mlp", index][0] * layer.multiplier)
    return logits, torch.stack(outputs), states["e"]


def _run_with_copies(anatomy: Anatomy, embeddings: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One run in which each target reads its own copy of the residual vector: logits, and the copies by target."""
    copies: dict[Any, Tensor] = {}
    residual: dict[int, Tensor] = {}

    def own_copy(key: Any) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            copies[key] = args[0].clone()
            return (copies[key], *args[1:])

        return hook

    def by_head(index: int, projection: Projection) -> Any:
        norm = anatomy.layers[index].attn_norm

        def states_of(x: Tensor, kind: Kind, head: int) -> Tensor:
            """One head's query, key or value, computed from x by the model's modules; .forward skips these hooks."""
            x = projection.module.forward(x if norm is None else norm.module.forward(x))
            x = x if projection.norm is None else projection.norm.module.forward(x)
            heads = x[..., projection.rows(kind)].unflatten(-1, (projection.heads_of(kind), -1))
            return heads[..., head if kind == "q" else head // anatomy.heads_per_kv, :]

        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            states: dict[Kind, Tensor] = {}
            for kind in projection.kinds:
                for head in range(anatomy.n_heads):
                    copies[index, head, kind] = residual[index].clone()
                per_head = [states_of(copies[index, head, kind], kind, head) for head in range(anatomy.n_heads)]
                states[kind] = torch.stack(per_head, -2)
            return projection.join(states)

        return hook

    def through_shared_norm(index: int) -> Any:
        """The MLP reads its own copy of the residual vector through the norm that it shares with attention."""

        def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            copies[index, "mlp"] = residual[index].clone()
            norm = anatomy.layers[index].attn_norm
            assert norm is not None
            return (norm.module.forward(copies[index, "mlp"]), *args[1:])

        return hook

    def only_the_node(index: int) -> Any:
        """A layer that is one node reads its own copy of its input, and adds to the input itself."""

        def hook(module: Any, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            first = first - copies[index, "mlp"] + residual[index]
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return hook

    def keep_residual(index: int) -> Any:
        return lambda module, args: residual.__setitem__(index, args[0])

    handles = [anatomy.embedding.register_forward_hook(lambda module, args, output: embeddings)]
    for index, layer in enumerate(anatomy.layers):
        handles.append(anatomy.decoder_layers[index].register_forward_pre_hook(keep_residual(index)))
        if layer.whole:
            handles.append(layer.mlp.register_forward_pre_hook(own_copy((index, "mlp"))))
            handles.append(layer.mlp.register_forward_hook(only_the_node(index)))
            for head in range(anatomy.n_heads):
                copies |= {(index, head, kind): embeddings for kind in KINDS}  # not read: no such edges
            continue
        for projection in layer.projections:
            handles.append(projection.last.register_forward_hook(by_head(index, projection)))
        reads = through_shared_norm(index) if layer.shared_norm else own_copy((index, "mlp"))
        handles.append(layer.mlp_reads.register_forward_pre_hook(reads))
    handles.append(anatomy.final_norm.register_forward_pre_hook(own_copy("logits")))
    with hooked(*handles), query_head_copies(anatomy):
        ids = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        logits = anatomy.model(input_ids=ids, use_cache=False).logits

    order: list[Any] = []
    for index in range(anatomy.n_layers):
        order += [(index, head, kind) for head in range(anatomy.n_heads) for kind in KINDS] + [(index, "mlp")]
    return logits, [copies[key] for key in [*order, "logits"]]
