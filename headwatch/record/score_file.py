"""The file of one probe's arrays in a run folder (safetensors).

The arrays are those of `ProbeScores`, by name, with three exceptions:

- edges_mean_abs: see packed_edges.py. The only array that loses precision here.
- patched: patched_heads, uint32 [K], the patched heads as l H + h, and patched_values, float32 [N, K].
- importance_draws: float16 where that is exact, as for those of a training (`CircuitHeads`).

Files of format 1 have patched [N, L, H], and importance_draws in float32.
"""

from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.record.packed_edges import WHOLE, Arrays, packed, unpacked
from headwatch.record.probe_scores import ProbeScores


def write_scores(path: Path, step: int, scores: ProbeScores) -> None:
    """Write the arrays of the probe at `step`."""
    arrays = scores.arrays()
    if WHOLE in arrays:
        arrays |= packed(arrays.pop(WHOLE))
    if "patched" in arrays:
        arrays |= _sparse(arrays.pop("patched"))
    if (draws := arrays.get("importance_draws")) is not None:
        with np.errstate(over="ignore"):
            half = draws.astype(np.float16)
        arrays["importance_draws"] = half if np.array_equal(half, draws, equal_nan=True) else draws
    write_atomic(path, save(arrays, metadata={"step": str(int(step))}))


def read_scores(path: Path) -> ProbeScores:
    """Read the arrays of one probe; arrays of unknown names are ignored.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        arrays = _dense(unpacked(load_file(path)))
        known = {field.name for field in fields(ProbeScores)}
        return ProbeScores(**{name: array for name, array in arrays.items() if name in known})
    except UserError:
        raise
    except Exception as error:  # safetensors raises its own type, and a missing array is a TypeError
        raise UserError(f"{path} cannot be read ({error}): move it away to read the rest of the run") from error


def _sparse(patched: NDArray[np.float32]) -> Arrays:
    """The patched heads and their effects; patched: [N, L, H]."""
    flat = patched.reshape(len(patched), -1)
    heads = np.flatnonzero(~np.isnan(flat).all(axis=0))
    return {"patched_heads": heads.astype(np.uint32), "patched_values": np.ascontiguousarray(flat[:, heads])}


def _dense(arrays: Arrays) -> Arrays:
    """The arrays of a file, with `patched` where it has patched heads."""
    if "patched_heads" not in arrays:
        return arrays
    scores = arrays["head_scores"]
    patched = np.full((len(scores), scores[0].size), np.nan, np.float32)
    patched[:, arrays["patched_heads"]] = arrays["patched_values"]
    return {**arrays, "patched": patched.reshape(scores.shape)}
