"""Mean |edge scores| of a probe on disk: only entries that are not zero, as half-precision parts of the largest one.

Half of a matrix [S, R] are no edges, and its entries are shown, never tested. Arrays of the file:

    edges_half   float16 [F, E]   entries that are not zero in every family, over the family's largest
    edges_scale  float32 [F]      the largest entry
    edges_rows   uint8 [U, R / 8] the different rows of the matrix of such entries, as bits
    edges_row    uint16 [S]       which of these rows each source has
    edges_width  int64 [1]        R

The error of an entry is at most 2^-11 of it, or 2^-25 of the largest entry where that is more. A matrix that is not
finite, and the files of older versions, have float32 edges_mean_abs [F, S, R] instead.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

WHOLE = "edges_mean_abs"
Arrays = dict[str, NDArray[Any]]


def packed(edges: NDArray[np.float32]) -> Arrays:
    """The arrays of the file for edges [F, S, R]."""
    scale = np.abs(edges).max(axis=tuple(range(1, edges.ndim)), initial=0)
    if edges.ndim != 3 or not np.isfinite(scale).all() or not edges.size:
        return {WHOLE: edges}
    present = (edges != 0).any(0)
    rows, row = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
    parts = edges[:, present] / np.where(scale > 0, scale, 1)[:, None]
    arrays = {
        "edges_half": parts.astype(np.float16),
        "edges_scale": scale.astype(np.float32),
        "edges_rows": rows,
        "edges_row": row.reshape(-1).astype(np.uint16),
        "edges_width": np.array([edges.shape[2]]),
    }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors writes memory as it is


def unpacked(arrays: Arrays) -> Arrays:
    """The arrays of a file, with edges_mean_abs [F, S, R] where it holds edges."""
    if "edges_half" not in arrays:
        return arrays
    half, width = arrays["edges_half"], int(arrays["edges_width"][0])
    present = np.unpackbits(arrays["edges_rows"], axis=1, count=width).astype(np.bool_)[arrays["edges_row"]]
    edges = np.zeros((len(half), *present.shape), np.float32)
    edges[:, present] = half.astype(np.float32) * arrays["edges_scale"][:, None]
    return {**arrays, WHOLE: edges}
