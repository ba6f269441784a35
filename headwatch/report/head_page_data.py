"""What a head's own page shows: its path over the probes and its strongest edges, as few numbers as that takes.

Every function returns plain JSON-able data. L layers, H heads, P probes, N pairs, S sources, R targets.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from headwatch.lives.history import HeadHistory
from headwatch.report.figure_data import plain, significant

# A report of 336 heads and 50 probes stays under 1 MB with these; a larger model keeps fewer probes, then fewer heads.
MAX_PROBES = 64
MAX_PATH_VALUES = 20_000  # a family and rule
MAX_EDGE_VALUES = 30_000  # a family
MAX_CHANGE_VALUES = 6_000  # a family
EDGES_A_SIDE = 5
SHARE_UNIT, IMPORTANCE_UNIT = 1e-4, 1e-5


def ranked_heads(histories: Iterable[HeadHistory]) -> tuple[list[tuple[int, int]], int]:
    """All heads (layer, head), those with the most to tell first, and how many have something to tell.

    First come heads that were ever active, in the active set or changed, by any of the histories; then the others.
    """
    told: Any = 0.0
    for history in histories:
        if history.steps:
            seen = (history.active | history.member).any(axis=0)
            moved = (history.strengthened | history.weakened).any(axis=0)
            told = told + 4.0 * seen + 2.0 * moved + np.nan_to_num(history.importance).max(axis=0)
    if np.ndim(told) == 0:
        return [], 0
    order = np.argsort(-told, axis=None, kind="stable")
    return [(int(i) // told.shape[1], int(i) % told.shape[1]) for i in order], int((told >= 2.0).sum())


def share_paths(
    history: HeadHistory, heads: Sequence[tuple[int, int]], pairs: int, max_values: int = MAX_PATH_VALUES
) -> dict[str, Any] | None:
    """Shares of heads over time with their 95 % intervals, in units of 1e-4: the first `heads` that there is room for.

    probes: indices into the history's steps, thinned with the first and last kept. heads [K]. rows, reach [K]
    [len(probes)]: the share, and half the width of its delta-method interval (Student's t, pairs - 1 degrees of
    freedom); None without signal. resolved [K]: a "1" or "0" for each of the probes, whether the pairs would tell the
    head's loss. None under the circuit rule, which has no shares.
    """
    if history.rule != "evidence" or not history.steps:
        return None
    probes, kept = _room(len(history.steps), heads, max_values)
    reach = history.share_error * float(stdtrit(max(pairs - 1, 1), 0.975))
    return {
        "probes": probes,
        "heads": [list(head) for head in kept],
        "rows": [_in_units(history.share[probes, layer, head], SHARE_UNIT) for layer, head in kept],
        "reach": [_in_units(reach[probes, layer, head], SHARE_UNIT) for layer, head in kept],
        "detectable": ["".join("01"[int(r)] for r in history.detectable[probes, layer, head]) for layer, head in kept],
    }


def importance_paths(
    history: HeadHistory, heads: Sequence[tuple[int, int]], max_values: int = MAX_PATH_VALUES
) -> dict[str, Any] | None:
    """The importance of heads over time (sum 1 over all heads), in units of 1e-5: probes, heads, rows as above.

    low, high [K] [len(probes)]: the ends of the 95 % interval over resamples of the pairs, as distances from the row;
    one 0 in place of a head's list where all of them are 0, as is a head's that is never in the circuit. Both None
    where the record has no resamples.
    """
    if not history.steps:
        return None
    probes, kept = _room(len(history.steps), heads, max_values // 2)  # an interval is more numbers for the same room
    value, low, high = history.importance, history.importance_low, history.importance_high
    found: dict[str, Any] = {"probes": probes, "heads": [list(head) for head in kept], "low": None, "high": None}
    found["rows"] = [_in_units(value[probes, layer, head], IMPORTANCE_UNIT) for layer, head in kept]
    if np.isfinite(low).any():
        for name, reach in (("low", value - low), ("high", high - value)):
            rows = [_in_units(reach[probes, layer, head], IMPORTANCE_UNIT) for layer, head in kept]
            found[name] = [row if any(row) else 0 for row in rows]
    return found


def change_table(
    history: HeadHistory, heads: Sequence[tuple[int, int]], max_values: int = MAX_CHANGE_VALUES
) -> dict[str, Any] | None:
    """What has changed of each head since the base, and on what evidence, at as many probes as there is room for.

    probes [Q]: indices of probes after the base with signal, the last one always. heads [K]. share, raw, importance
    [K] [Q]: (difference, half the width of its 95 % interval, p, q) flat, the share and the importance as parts of 1;
    None where a number is not finite. None under the circuit rule, and before there is such a probe.
    """
    tested = {of: history.change(of) for of in ("share", "raw", "importance")} if history.rule == "evidence" else {}
    shown = np.isfinite(tested["share"].p_value).any(axis=(1, 2)) if tested else np.zeros(0, np.bool_)
    after = np.flatnonzero(shown)
    if not len(after):
        return None
    kept = heads[: max(1, max_values // 12)]
    wanted = max(1, min(MAX_PROBES, max_values // (12 * max(1, len(kept)))))
    probes = [int(after[-1 - i]) for i in (_thinned(len(after), wanted) if wanted > 1 else [0])]
    found: dict[str, Any] = {"probes": sorted(probes), "heads": [list(head) for head in kept]}
    for of, change in tested.items():
        lower, upper = change.interval()
        columns = (change.difference, (upper - lower) / 2.0, change.p_value, change.q_value)
        found[of] = [
            [
                significant(float(c[p, layer, head]), n)
                for p in found["probes"]
                for c, n in zip(columns, (3, 2, 2, 2), strict=True)
            ]
            for layer, head in kept
        ]
    return found


def strongest_edges(
    available: Sequence[int],
    read: Callable[[int], NDArray[Any] | None],
    shape: tuple[int, int],
    heads: Sequence[tuple[int, int]],
    told: int,
    max_values: int = MAX_EDGE_VALUES,
) -> dict[str, Any] | None:
    """The strongest edges of heads by mean |edge score|, at a few probes.

    available: indices of the probes that have edges; read(index): their [S, R]. The first `told` heads get as many
    probes as there is room for, the others the first and the last. scale: the largest |edge| of the probes read.
    probes [Q]; heads [K]; out, into: [K][Q] flat lists, strongest first, or None where that probe is not kept. In
    `out` a (column of the targets, value) an edge; in `into` a (row of the sources, 0, 1 or 2 for the head's q, k or
    v, value); in Anatomy's order. Values in 1e-4 of the scale; what rounds to zero is left out. None without edges.
    """
    layers, n_heads = shape
    expected = (1 + layers * (n_heads + 1), layers * (3 * n_heads + 1) + 1)
    if not available or not heads:
        return None
    room = max(2, max_values // (5 * EDGES_A_SIDE))  # so many heads at so many probes
    kept = list(heads[: room // 2])
    first = min(max(told, 1), len(kept))
    wanted = max(2, (room - 2 * (len(kept) - first)) // first)
    probes = [available[i] for i in _thinned(len(available), wanted)]
    matrices = [read(index) for index in probes]
    if any(matrix is None or matrix.shape != expected for matrix in matrices):
        return None
    scale = max(float(np.nan_to_num(matrix).max()) for matrix in matrices if matrix is not None)
    if not scale > 0.0:
        return None
    out: list[list[list[int] | None]] = [[] for _ in kept]
    into: list[list[list[int] | None]] = [[] for _ in kept]
    for q, matrix in enumerate(matrices):
        assert matrix is not None
        for k, (layer, head) in enumerate(kept):
            if k >= first and q not in (0, len(probes) - 1):
                out[k].append(None)
                into[k].append(None)
                continue
            column = layer * (3 * n_heads + 1) + 3 * head
            leaving = _largest(matrix[1 + layer * (n_heads + 1) + head], scale)
            arriving = _largest(matrix[:, column : column + 3], scale)
            out[k].append([n for place, value in leaving for n in (place, value)])
            into[k].append([n for place, value in arriving for n in (place // 3, place % 3, value)])
    return {
        "scale": float(f"{scale:.4g}"),
        "probes": probes,
        "heads": [list(head) for head in kept],
        "out": out,
        "into": into,
    }


def _largest(values: NDArray[Any], scale: float) -> list[tuple[int, int]]:
    """(flat index, value in 1e-4 of the scale) of the largest values, strongest first, what rounds to zero left out."""
    flat = np.ascontiguousarray(values).ravel()
    found = np.argpartition(-flat, min(EDGES_A_SIDE, flat.size - 1))[:EDGES_A_SIDE]
    ordered = found[np.argsort(-flat[found], kind="stable")]
    return [(int(i), n) for i in ordered if math.isfinite(flat[i]) and (n := round(float(flat[i]) / scale * 1e4)) > 0]


def _room(
    n_probes: int, heads: Sequence[tuple[int, int]], max_values: int
) -> tuple[list[int], Sequence[tuple[int, int]]]:
    """Which probes and heads fit: probes are thinned to a dozen before a head is left out."""
    wanted = min(MAX_PROBES, max(12, max_values // max(1, len(heads))))
    probes = _thinned(n_probes, wanted)
    return probes, heads[: max(1, max_values // len(probes))]


def _thinned(n: int, wanted: int) -> list[int]:
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, max(2, wanted))).round())]


def _in_units(values: NDArray[np.float64], unit: float) -> list[int | None]:
    return [None if v is None else round(v / unit) for v in plain(values)]
