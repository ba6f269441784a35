"""Mean |edge scores| of a probe on disk: only entries that are not zero, 12 bits each, as parts of the largest one.

Half of a matrix [S, R] are no edges, and its entries are shown, never tested. A part lies in [0, 1]. Its half-precision
number has no sign and an exponent of at most 15, so the number's bits are a code of at most 0x3C00; dropping the two
lowest bits, rounded, leaves 12. Their upper 8 compress by a tenth or more, the lower 4 do not. Arrays of the file:

    edges_high   uint8 [C]              zlib stream of the upper 8 bits, [F, E], of the entries that are not zero in
                                        every family
    edges_low    uint8 [ceil(F E / 2)]  their lower 4 bits, two entries per byte, the first in the upper half
    edges_scale  float32 [F]            the largest entry
    edges_rows   uint8 [U, R / 8]       the different rows of the matrix of such entries, as bits
    edges_row    uint16 [S]             which of these rows each source has
    edges_width  int64 [1]              R

Error of an entry: at most RELATIVE of it, or ABSOLUTE of the largest entry where that is more. For a part v >= 2^-14
half precision rounds by at most 2^-11 v, and dropping two bits by at most 2 units of the last place, 2^-9 of the
rounded number: 2^-9 + 2^-11 + 2^-20. Below, units are 2^-24: 2^-25 + 2^-23. The rest of both bounds covers the
division, the product and the smallest float32 (2^-149).

A matrix that is not finite has float32 edges_mean_abs [F, S, R] instead, as had the first records of all; records of
format 1 have the half-precision numbers whole, float16 edges_half [F, E].
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

WHOLE = "edges_mean_abs"
RELATIVE, ABSOLUTE = 2**-9 + 2**-10, 2**-22
DROPPED, LOW = 2, 4  # bits that are dropped, bits that are not compressed

Arrays = dict[str, NDArray[Any]]


def packed(edges: NDArray[np.float32]) -> Arrays:
    """The arrays of the file for edges [F, S, R]."""
    scale = np.abs(edges).max(axis=tuple(range(1, edges.ndim)), initial=0)
    if edges.ndim != 3 or not np.isfinite(scale).all() or not edges.size or (edges < 0).any():
        return {WHOLE: edges}
    present = (edges != 0).any(0)
    rows, row = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
    parts = edges[:, present] / np.where(scale > 0, scale, 1)[:, None]
    high, low = _halved(parts.astype(np.float16))
    arrays = {
        "edges_high": np.frombuffer(zlib.compress(high, 1), np.uint8),
        "edges_low": low,
        "edges_scale": scale.astype(np.float32),
        "edges_rows": rows,
        "edges_row": row.reshape(-1).astype(np.uint16),
        "edges_width": np.array([edges.shape[2]]),
    }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors writes memory as it is


def unpacked(arrays: Arrays) -> Arrays:
    """The arrays of a file of any format, with edges_mean_abs [F, S, R] where it holds edges.

    Raises:
        ValueError: the arrays do not fit together.
    """
    if "edges_scale" not in arrays:
        return arrays
    scale, width = arrays["edges_scale"], int(arrays["edges_width"][0])
    present = np.unpackbits(arrays["edges_rows"], axis=1, count=width).astype(np.bool_)[arrays["edges_row"]]
    if "edges_half" in arrays:  # format 1
        half = arrays["edges_half"]
    else:
        n = len(scale) * int(present.sum())
        half = _joined(arrays["edges_high"], arrays["edges_low"], n).reshape(len(scale), -1)
    edges = np.zeros((len(half), *present.shape), np.float32)
    edges[:, present] = half.astype(np.float32) * scale[:, None]
    return {**arrays, WHOLE: edges}


def _halved(half: NDArray[np.float16]) -> tuple[bytes, NDArray[np.uint8]]:
    """Upper bits of the codes of numbers in [0, 1], one per byte, and lower bits, two per byte."""
    code = (half.ravel().view(np.uint16) + np.uint16(1 << (DROPPED - 1))) >> DROPPED
    low = (code & (2**LOW - 1)).astype(np.uint8)
    low = np.append(low, np.zeros(len(low) % 2, np.uint8))
    return (code >> LOW).astype(np.uint8).tobytes(), (low[::2] << LOW) | low[1::2]


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8], n: int) -> NDArray[np.float16]:
    """The n numbers of `_halved`."""
    whole = zlib.decompressobj().decompress(high.tobytes(), n + 1)
    if len(whole) != n or len(low) != (n + 1) // 2:
        raise ValueError(f"edges of {n} entries have {len(whole)} upper and {2 * len(low)} lower parts")
    lower = np.stack([low >> LOW, low & (2**LOW - 1)], 1).ravel()[:n]
    code = (np.frombuffer(whole, np.uint8).astype(np.uint16) << LOW) | lower
    return (code << DROPPED).view(np.float16)
