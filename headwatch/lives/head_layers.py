"""The layers of a model that have attention heads: of a hybrid model, statistics are of these alone."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.errors import UserError
from headwatch.lives.history_arrays import DTYPES, ProbeRow, Verdict
from headwatch.stats import Change

REST = {"q_value": 1.0, "p_value": 1.0}  # of heads that do not exist; the other values are 0, False or "inactive"


class HeadLayers:
    """Selects the layers that have heads, and spreads arrays of them over all layers.

    Args:
        shape: (L, H).
        layers: indices of the layers that have heads, increasing; None: all of them.

    Attributes:
        has_head: bool [L, H].
        n_heads: how many heads exist.

    Raises:
        UserError: `layers` is empty, not increasing, or beyond L.
    """

    def __init__(self, shape: tuple[int, int], layers: Sequence[int] | None = None) -> None:
        self.shape = shape
        every = list(range(shape[0]))
        self.layers = every if layers is None else [int(layer) for layer in layers]
        if not self.layers or not set(self.layers) <= set(every) or sorted(set(self.layers)) != self.layers:
            raise UserError(f"layers={layers!r}: give increasing numbers of layers from 0 to {shape[0] - 1}")
        self.is_all = self.layers == every
        self.has_head = np.zeros(shape, np.bool_)
        self.has_head[self.layers] = True
        self.n_heads = len(self.layers) * shape[1]

    def pick(self, values: NDArray[Any]) -> NDArray[Any]:
        """The layers that have heads, [..., L', H] of [..., L, H]."""
        return values if self.is_all else values[..., self.layers, :]

    def spread(self, values: NDArray[Any], rest: Any = 0) -> NDArray[Any]:
        """[..., L, H] of [..., L', H], with `rest` where no head exists (NaN where every value is)."""
        if self.is_all:
            return values
        unknown = values.dtype.kind == "f" and bool(np.isnan(values).all())
        whole = np.full((*values.shape[:-2], *self.shape), np.nan if unknown else rest, values.dtype)
        whole[..., self.layers, :] = values
        return whole

    def spread_verdict(self, verdict: Verdict) -> Verdict:
        """The verdict over all layers. Its events are left as they are."""
        if self.is_all:
            return verdict
        row, draws = verdict.row, verdict.importance_draws
        arrays: dict[str, Any] = {name: self.spread(getattr(row, name), REST.get(name, 0)) for name in DTYPES}
        changes = {key: self._spread_change(change) for key, change in row.changes.items()}
        whole: ProbeRow = replace(row, **arrays, changes=changes)
        return replace(verdict, row=whole, importance_draws=None if draws is None else self.spread(draws))

    def _spread_change(self, change: Change) -> Change:
        found = {f.name: self.spread(getattr(change, f.name), REST.get(f.name, 0)) for f in fields(change)}
        return Change(**found | {"freedom": self.spread(change.freedom, change.freedom.max())})
