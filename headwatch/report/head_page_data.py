"""Data of a head's own page: its values over the probes, its changes and its strongest edges.

Every function returns JSON-serialisable data and keeps within a budget of values. L layers, H heads, P probes, Q kept
probes, K kept heads, S sources, R targets. Heads are [layer, head].
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from headwatch.lives.history import HeadHistory
from headwatch.report.figure_data import plain, significant

# With these a report of 336 heads and 50 probes is under 1 MB; a larger model keeps fewer probes, then fewer heads.
MAX_PROBES = 64
MAX_PATH_VALUES = 20_000  # per family and rule
MAX_EDGE_VALUES = 30_000  # per family
MAX_CHANGE_VALUES = 6_000  # per family
EDGES_PER_SIDE = 5
SHARE_UNIT, IMPORTANCE_UNIT, EDGE_UNIT = 1e-4, 1e-5, 1e-4
VALUES_PER_EDGE = 5  # (target, value) and (source, kind, value)
VALUES_PER_CHANGE = 12  # four of each of three measures

Head = tuple[int, int]


def ranked_heads(histories: Iterable[HeadHistory]) -> tuple[list[Head], int]:
    """All heads that exist, ordered so that the first ones are worth a page.

    Returns:
        heads: first those that were active, members of the active set or significantly changed in any of the histories,
        then the others, each part by importance; and the number of the first kind.
    """
    rank: Any = 0.0
    for history in histories:
        if history.steps:
            has_head, total = history.has_head, history.total_heads
            present = (history.active | history.member).any(axis=0)
            changed = (history.strengthened | history.weakened).any(axis=0)
            rank = rank + 4.0 * present + 2.0 * changed + np.nan_to_num(history.importance).max(axis=0)
    if np.ndim(rank) == 0:
        return [], 0
    order = np.argsort(-np.where(has_head, rank, -1.0), axis=None, kind="stable")[:total]
    return [(int(i) // rank.shape[1], int(i) % rank.shape[1]) for i in order], int((rank >= 2.0).sum())


def share_paths(
    history: HeadHistory, heads: Sequence[Head], pairs: int, max_values: int = MAX_PATH_VALUES
) -> dict[str, Any] | None:
    """Shares over the probes with their 95 % intervals, in SHARE_UNIT; None under the circuit rule.

    Returns:
        probes [Q]: indices of the history's steps, always with the first and the last; heads [K]: the first ones that
        fit; rows [K][Q]: shares; half_widths [K][Q]: of the delta-method interval (Student's t, pairs - 1 degrees of
        freedom), None without signal; detectable [K]: strings of Q signs, "1" where the loss of the head would be
        detected.
    """
    if history.rule != "evidence" or not history.steps:
        return None
    probes, kept = _fitting(len(history.steps), heads, max_values)
    half_width = history.share_error * float(stdtrit(max(pairs - 1, 1), 0.975))
    return {
        "unit": SHARE_UNIT,
        "probes": probes,
        "heads": [list(head) for head in kept],
        "rows": _in_units(history.share, probes, kept, SHARE_UNIT),
        "half_widths": _in_units(half_width, probes, kept, SHARE_UNIT),
        "detectable": ["".join("01"[int(d)] for d in history.detectable[probes, layer, head]) for layer, head in kept],
    }


def importance_paths(
    history: HeadHistory, heads: Sequence[Head], max_values: int = MAX_PATH_VALUES
) -> dict[str, Any] | None:
    """Importance over the probes (sum 1 over all heads), in IMPORTANCE_UNIT.

    Returns:
        probes [Q], heads [K], rows [K][Q] as in `share_paths`; low, high [K][Q]: distances from the row to the ends of
        its 95 % interval over resamples of the pairs. A head whose distances are all 0 (never in the circuit) has one 0
        in place of its list. Both None where the record has no resamples.
    """
    if not history.steps:
        return None
    probes, kept = _fitting(len(history.steps), heads, max_values // 2)  # half, because the interval takes as much
    value, low, high = history.importance, history.importance_low, history.importance_high
    found: dict[str, Any] = {"unit": IMPORTANCE_UNIT, "probes": probes, "heads": [list(head) for head in kept]}
    found |= {"low": None, "high": None}
    found["rows"] = _in_units(value, probes, kept, IMPORTANCE_UNIT)
    if np.isfinite(low).any():
        for name, distance in (("low", value - low), ("high", high - value)):
            rows = _in_units(distance, probes, kept, IMPORTANCE_UNIT)
            found[name] = [row if any(row) else 0 for row in rows]
    return found


def change_table(
    history: HeadHistory, heads: Sequence[Head], max_values: int = MAX_CHANGE_VALUES
) -> dict[str, Any] | None:
    """Paired change of each head since the base; None under the circuit rule and before a second probe with signal.

    Returns:
        probes [Q]: indices of probes with signal after the base, always with the last; heads [K]; share, raw,
        importance [K][4 Q]: difference, half the width of its 95 % interval, p and q of each probe, None where not
        finite. Shares and importances are fractions of 1.
    """
    if history.rule != "evidence":
        return None
    tested = {of: history.change(of) for of in ("share", "raw", "importance")}
    after = np.flatnonzero(np.isfinite(tested["share"].p_value).any(axis=(1, 2)))
    if not len(after):
        return None
    kept = heads[: max(1, max_values // VALUES_PER_CHANGE)]
    n_probes = max(1, min(MAX_PROBES, max_values // (VALUES_PER_CHANGE * max(1, len(kept)))))
    probes = sorted(int(after[-1 - i]) for i in (_thinned(len(after), n_probes) if n_probes > 1 else [0]))
    found: dict[str, Any] = {"probes": probes, "heads": [list(head) for head in kept]}
    for of, change in tested.items():
        lower, upper = change.interval()
        columns = (change.difference, (upper - lower) / 2.0, change.p_value, change.q_value)
        digits = (3, 2, 2, 2)
        found[of] = [
            [significant(float(c[p, layer, head]), n) for p in probes for c, n in zip(columns, digits, strict=True)]
            for layer, head in kept
        ]
    return found


def strongest_edges(
    available: Sequence[int],
    read: Callable[[int], NDArray[Any] | None],
    shape: tuple[int, int],
    heads: Sequence[Head],
    n_first: int,
    max_values: int = MAX_EDGE_VALUES,
) -> dict[str, Any] | None:
    """The EDGES_PER_SIDE strongest edges of heads by mean |edge score|; None without edges.

    Args:
        available: indices of the probes that have edges.
        read: takes such an index, returns the probe's edges [S, R].
        shape: (L, H).
        heads: in order of rank.
        n_first: this many heads get all the probes that fit, the others the first and the last.

    Returns:
        unit: of the values, EDGE_UNIT of the largest edge; probes [Q]; heads [K]; out, into [K][Q]: flat lists,
        strongest first, or None where the probe is not kept for the head. In `out` each edge is (column of the target,
        value), in `into` (row of the source, 0, 1 or 2 for q, k or v, value). Values that round to zero are omitted.
    """
    if not available or not heads:
        return None
    room = max(2, max_values // (VALUES_PER_EDGE * EDGES_PER_SIDE))  # entries of one head at one probe
    kept = list(heads[: room // 2])
    n_first = min(max(n_first, 1), len(kept))
    probes = [available[i] for i in _thinned(len(available), max(2, (room - 2 * (len(kept) - n_first)) // n_first))]
    matrices = _edge_matrices(probes, read, shape)
    unit = EDGE_UNIT * max((float(np.nan_to_num(matrix).max()) for matrix in matrices), default=0.0)
    if not unit > 0.0:
        return None
    out: list[list[list[int] | None]] = [[] for _ in kept]
    into: list[list[list[int] | None]] = [[] for _ in kept]
    for q, matrix in enumerate(matrices):
        for k, head in enumerate(kept):
            shown = k < n_first or q in (0, len(probes) - 1)
            out[k].append(_edges_out(matrix, head, shape[1], unit) if shown else None)
            into[k].append(_edges_into(matrix, head, shape[1], unit) if shown else None)
    return {
        "unit": significant(unit, 4),
        "probes": probes,
        "heads": [list(head) for head in kept],
        "out": out,
        "into": into,
    }


# --- inside -----------------------------------------------------------------------------------------------------------


def _edge_matrices(
    probes: Sequence[int], read: Callable[[int], NDArray[Any] | None], shape: tuple[int, int]
) -> list[NDArray[Any]]:
    """The edges of the probes; none at all where one is missing or has another shape than the model's."""
    layers, heads = shape
    expected = (1 + layers * (heads + 1), layers * (3 * heads + 1) + 1)
    found = [matrix for index in probes if (matrix := read(index)) is not None and matrix.shape == expected]
    return found if len(found) == len(probes) else []


def _edges_out(matrix: NDArray[Any], head: Head, n_heads: int, unit: float) -> list[int]:
    row = matrix[1 + head[0] * (n_heads + 1) + head[1]]
    return [n for place, value in _largest(row, unit) for n in (place, value)]


def _edges_into(matrix: NDArray[Any], head: Head, n_heads: int, unit: float) -> list[int]:
    first = head[0] * (3 * n_heads + 1) + 3 * head[1]
    largest = _largest(matrix[:, first : first + 3], unit)
    return [n for place, value in largest for n in (place // 3, place % 3, value)]


def _largest(values: NDArray[Any], unit: float) -> list[tuple[int, int]]:
    """(flat index, value in units) of the largest values, strongest first."""
    flat = np.ascontiguousarray(values).ravel()
    found = np.argpartition(-flat, min(EDGES_PER_SIDE, flat.size - 1))[:EDGES_PER_SIDE]
    ordered = [int(i) for i in found[np.argsort(-flat[found], kind="stable")] if math.isfinite(flat[i])]
    return [(i, n) for i in ordered if (n := round(float(flat[i]) / unit)) > 0]


def _fitting(n_probes: int, heads: Sequence[Head], max_values: int) -> tuple[list[int], Sequence[Head]]:
    """The probes and heads that fit into a budget; probes are thinned to twelve before a head is left out."""
    probes = _thinned(n_probes, min(MAX_PROBES, max(12, max_values // max(1, len(heads)))))
    return probes, heads[: max(1, max_values // len(probes))]


def _thinned(n: int, kept: int) -> list[int]:
    """Evenly spaced indices below n, at least two, with the first and the last."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, max(2, kept))).round())]


def _in_units(
    values: NDArray[np.float64], probes: list[int], heads: Sequence[Head], unit: float
) -> list[list[int | None]]:
    """Rows [K][Q] of values [P, L, H], as whole numbers of the unit."""
    return [[None if v is None else round(v / unit) for v in plain(values[probes, *head])] for head in heads]
