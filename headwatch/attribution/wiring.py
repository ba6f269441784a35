"""Wiring check: does each query, key and value head of a layout act as one, and on its own heads' outputs alone?

The naive reference uses the layout's order of heads as well. A wrong order (of a fused projection's rows, or keys taken
for values) therefore changes the names of edges without changing any sum. Here one head's query, key or value is
disturbed at a time: a query at one token changes the outputs at that token, a key other outputs, and without its values
a head's output is zero.
"""

from typing import Any

import torch
from torch import Tensor

from headwatch.model.anatomy import Anatomy, Kind, Projection
from headwatch.model.hooks import hooked

_NOTHING = 1e-9  # largest change of an output, over the largest output, that counts as none; in float64
_NAMES: dict[Kind, str] = {"q": "query", "k": "key", "v": "value"}


@torch.no_grad()
def wiring_problem(anatomy: Anatomy, ids: Tensor) -> str | None:
    """The first head that is not wired as the layout says; None if there is none.

    Args:
        anatomy: a float64 model.
        ids: token ids, [1, T].
    """
    plain = _outputs(anatomy, ids)
    for index, layer in enumerate(anatomy.layers):
        for projection in layer.projections:
            for kind in projection.kinds:
                for head in range(anatomy.n_heads if kind == "q" else anatomy.n_kv_heads):
                    with hooked(projection.last.register_forward_hook(_disturb(anatomy, projection, kind, head))):
                        found = _outputs(anatomy, ids)[index]
                    problem = _problem(anatomy, kind, head, found, plain[index])
                    if problem is not None:
                        return f"{_NAMES[kind]} {head} of layer {index} {problem}"
    return None


def _problem(anatomy: Anatomy, kind: Kind, head: int, found: Tensor, plain: Tensor) -> str | None:
    """What is wrong with the outputs [T, H, D] of a layer after one of its heads was disturbed."""
    limit = _NOTHING * plain.abs().max()
    readers = 1 if kind == "q" else anatomy.heads_per_kv
    own = range(head * readers, (head + 1) * readers)
    change = (found - plain).abs().amax(-1) > limit  # [T, H]
    changed = change.any(0).nonzero()[:, 0].tolist()
    if changed != list(own):
        names = ", ".join(map(str, changed)) or "none"
        return f"changes the output of heads {names} instead of {', '.join(map(str, own))}"
    at = change.any(1).nonzero()[:, 0].tolist()
    if kind == "q" and at != [_token(plain)]:
        return "at one token changes outputs at other tokens, so it is no query"
    if kind == "k" and at == [_token(plain)]:
        return "changes outputs only at its own token, so it is no key"
    if kind == "v" and float(found[:, list(own)].abs().max()) > limit:
        return "is zero, but the head's output is not, so it is no value"
    return None


def _token(states: Tensor) -> int:
    """The token at which a query or key is disturbed."""
    return len(states) // 2


def _disturb(anatomy: Anatomy, projection: Projection, kind: Kind, head: int) -> Any:
    """Hook that adds random numbers to one head's query or key at one token, or sets its values to zero."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        columns = torch.arange(output.shape[-1])[projection.rows(kind)].unflatten(0, (-1, anatomy.head_dim))[head]
        output = output.clone()
        if kind == "v":
            output[..., columns] = 0.0
        else:
            noise = torch.randn(anatomy.head_dim, generator=torch.Generator().manual_seed(0)).to(output)
            output[0, _token(output[0]), columns] += noise * output.abs().max()
        return output

    return hook


def _outputs(anatomy: Anatomy, ids: Tensor) -> list[Tensor]:
    """Every layer's input of o_proj, by head, [T, H, D]."""
    found: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        return lambda module, args: found.__setitem__(index, args[0][0].unflatten(-1, (anatomy.n_heads, -1)))

    with hooked(*(layer.out.register_forward_pre_hook(keep(i)) for i, layer in enumerate(anatomy.layers))):
        anatomy.model(input_ids=ids, use_cache=False)
    return [found[index] for index in range(anatomy.n_layers)]
