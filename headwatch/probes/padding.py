"""Padding of token ids."""

from collections.abc import Sequence

Rows = list[list[int]]


def pad_left(rows: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Rows, Rows]:
    """Pad rows of token ids on the left to the longest; returns the ids and the attention mask (1 = real), [N, T]."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return ids, mask
