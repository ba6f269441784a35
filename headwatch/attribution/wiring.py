"""Wiring check: does each query, key and value head of a layout act as one, and on its own heads' outputs alone?

The naive reference uses the layout's order of heads as well. A wrong order (of a fused projection's rows, or keys taken
for values) therefore changes the names of edges without changing any sum. Here one head's query, key or value is
disturbed at a time: a query at one token changes the outputs at that token, a key other outputs, and without its values
a head's output is zero. A head whose attention is saturated may not react to its query or key.
"""

from typing import Any

import torch
from torch import Tensor

from headwatch.model.anatomy import Anatomy
from headwatch.model.hooks import hooked
from headwatch.model.parts import Kind, Projection

_NOTHING = 1e-9  # largest change of an output, over the largest output, that counts as none; in float64
_NAMES: dict[Kind, str] = {"q": "query", "k": "key", "v": "value"}


@torch.no_grad()
def wiring_problem(anatomy: Anatomy, ids: Tensor) -> str | None:
    """The first head that is not wired as in the layout; None if there is none.

    Args:
        anatomy: a float64 model.
        ids: token ids, [1, T].
    """
    plain = _outputs(anatomy, ids)
    for index, layer in enumerate(anatomy.layers):
        for projection in layer.projections:
            for kind in projection.kinds:
                reacts = False
                for head in range(projection.heads_of(kind)):
                    with hooked(projection.last.register_forward_hook(_disturb(projection, kind, head))):
                        found = _outputs(anatomy, ids)[index]
                    problem = _problem(anatomy, kind, head, found, plain[index])
                    if problem is not None:
                        return f"{_NAMES[kind]} {head} of layer {index} {problem}"
                    reacts = reacts or not torch.equal(found, plain[index])
                if not reacts:
                    return f"no {_NAMES[kind]} of layer {index} changes an output"
    return None


def _problem(anatomy: Anatomy, kind: Kind, head: int, found: Tensor, plain: Tensor) -> str | None:
    """What is wrong with the outputs [T, H, D] of a layer after one of its heads was disturbed."""
    limit = _NOTHING * plain.abs().max()
    readers = 1 if kind == "q" else anatomy.heads_per_kv
    own = range(head * readers, (head + 1) * readers)
    change = (found - plain).abs().amax(-1) > limit  # [T, H]
    changed = change.any(0).nonzero()[:, 0].tolist()
    if not set(changed) <= set(own):
        return f"changes the output of heads {', '.join(map(str, changed))} instead of {', '.join(map(str, own))}"
    if not changed and kind != "v":
        return None
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


def _disturb(projection: Projection, kind: Kind, head: int) -> Any:
    """Hook that sets one head's query at one token or all its values to zero, or adds random numbers to a key."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        columns = torch.arange(output.shape[-1])[projection.rows(kind)].chunk(projection.heads_of(kind))[head]
        output = output.clone()
        if kind == "v":
            output[..., columns] = 0.0
        elif kind == "q":
            output[0, _token(output[0]), columns] = 0.0
        else:
            noise = torch.randn(len(columns), generator=torch.Generator().manual_seed(0)).to(output)
            output[0, _token(output[0]), columns] += noise * output.abs().max()
        return output

    return hook


def _outputs(anatomy: Anatomy, ids: Tensor) -> dict[int, Tensor]:
    """The input of o_proj of every layer that has one, by head, [T, H, D]."""
    found: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        return lambda module, args: found.__setitem__(index, args[0][0].unflatten(-1, (anatomy.n_heads, -1)))

    layers = [(index, layer) for index, layer in enumerate(anatomy.layers) if not layer.whole]
    with hooked(*(layer.out.register_forward_pre_hook(keep(index)) for index, layer in layers)):
        anatomy.model(input_ids=ids, use_cache=False)
    return found
