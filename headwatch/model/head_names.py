"""Names of attention heads: "L17.H3" for layer 17, head 3, both counted from 0."""

import re
from collections.abc import Iterable

from headwatch.errors import UserError

Head = tuple[int, int]
"""(layer, head)."""

_NAME = re.compile(r"(?:[la]?(\d+)\.?h(\d+)|(\d+)\.(\d+))", re.IGNORECASE)


def head_name(layer: int, head: int) -> str:
    """The canonical name of a head.

    >>> head_name(17, 3)
    'L17.H3'
    """
    return f"L{int(layer)}.H{int(head)}"


def parse_head(head: str | Iterable[int], shape: tuple[int, int] | None = None, option: str = "heads") -> Head:
    """Read a head: "L17.H3", "a17.h3" (as in edges), "17.3", or (17, 3).

    Args:
        head: the head.
        shape: (L, H) of the model, to check the range; None checks nothing.
        option: names the option in messages.

    Returns:
        (layer, head).

    Raises:
        UserError: it is not a head, or the model has no such head.

    >>> parse_head("a17.h3")
    (17, 3)
    """
    layer, index = _numbers(head, option)
    if shape is not None:
        n_layers, n_heads = shape
        if not (0 <= layer < n_layers and 0 <= index < n_heads):
            raise UserError(
                f"{option}: the model has no head {head if isinstance(head, str) else head_name(layer, index)}; its "
                f"heads are {head_name(0, 0)} to {head_name(n_layers - 1, n_heads - 1)} "
                f"({n_layers} layers, {n_heads} heads per layer, counted from 0)"
            )
    return layer, index


def parse_heads(
    heads: Iterable[str | Iterable[int]], shape: tuple[int, int] | None = None, option: str = "heads"
) -> list[Head]:
    """Read several heads (see `parse_head`), without repetitions, in the given order.

    Raises:
        UserError: one of them is not a head of the model.
    """
    if isinstance(heads, str):
        heads = heads.replace(",", " ").split()
    return list(dict.fromkeys(parse_head(head, shape, option) for head in heads))


def _numbers(head: str | Iterable[int], option: str) -> Head:
    if isinstance(head, str):
        match = _NAME.fullmatch(head.strip())
        if match:
            layer, index = (int(group) for group in match.groups() if group is not None)
            return layer, index
    else:
        try:
            layer, index = head
            if int(layer) == layer and int(index) == index:
                return int(layer), int(index)
        except (TypeError, ValueError):
            pass
    raise UserError(f"{option}: {head!r} is not a head; write layer and head, counted from 0, as {head_name(17, 3)}")
