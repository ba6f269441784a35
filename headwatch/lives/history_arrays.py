"""The measurements of a history: one row per probe, returned as arrays over probes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.errors import UserError
from headwatch.lives.events import Event
from headwatch.stats import OK, Change, NullBand

MEASURES = ("share", "raw", "importance")
REFERENCES = ("base", "previous")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class ProbeRow:
    """What one probe measures; arrays are [L, H]. `HeadHistory` documents each of them.

    Attributes:
        changes: (measure, reference) -> change since that reference; missing where the probe has none.
    """

    state: NDArray[np.int8]
    member: Bools
    share: Floats
    share_error: Floats
    q_value: Floats
    detectable: Bools
    strengthened: Bools
    weakened: Bools
    raw: Floats
    importance: Floats
    importance_low: Floats
    importance_high: Floats
    stability: Floats
    metric_gap: float = float("nan")
    split_half: float = float("nan")
    null_band: NullBand | None = None
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "ProbeRow":
        """A row without any measurement: NaN, False, and every head inactive."""
        nothing: dict[type[np.generic], Any] = {
            np.int8: np.zeros(shape, np.int8),
            np.bool_: np.zeros(shape, np.bool_),
            np.float64: np.full(shape, np.nan),
        }
        return cls(**{name: nothing[dtype] for name, dtype in DTYPES.items()})


DTYPES: dict[str, type[np.generic]] = {
    "state": np.int8,
    **dict.fromkeys(("member", "detectable", "strengthened", "weakened"), np.bool_),
    **dict.fromkeys(("share", "share_error", "q_value", "raw"), np.float64),
    **dict.fromkeys(("importance", "importance_low", "importance_high", "stability"), np.float64),
}


@dataclass(frozen=True)
class Verdict:
    """What a rule concludes from one probe.

    Attributes:
        row: the measurements and the states after the probe.
        signal: "ok" or "insufficient signal".
        events: new events, and earlier pending ones that this probe confirms or withdraws.
        importance_draws: [B, L, H], the importance in bootstrap samples of the pairs; None: not resampled.
    """

    row: ProbeRow
    signal: str = OK
    events: list[Event] = field(default_factory=list)
    importance_draws: NDArray[Any] | None = None


class HistoryArrays:
    """The rows of all probes.

    Attributes:
        shape: (L, H).
        rows: [P], in order of steps.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.rows: list[ProbeRow] = []

    def per_head(self, name: str) -> NDArray[Any]:
        """The array of this name over all probes, [P, L, H]."""
        rows = [getattr(row, name) for row in self.rows]
        return np.array(rows, DTYPES[name]).reshape(len(rows), *self.shape)

    def per_probe(self, name: str) -> list[Any]:
        """The value of this name at every probe, [P]."""
        return [getattr(row, name) for row in self.rows]

    def change(self, of: str, since: str) -> Change:
        """One change over all probes; its fields are [P, L, H], NaN where a probe has no such change."""
        if of not in MEASURES or since not in REFERENCES:
            raise UserError(f"of={of!r}, since={since!r}: give one of {MEASURES} and one of {REFERENCES}")
        nan = np.full(self.shape, np.nan)
        found = [row.changes.get((of, since), Change(*[nan] * 5)) for row in self.rows]
        names = ("difference", "standard_error", "p_value", "q_value", "freedom")
        columns = (np.array([getattr(change, name) for change in found], np.float64) for name in names)
        return Change(*(column.reshape(len(found), *self.shape) for column in columns))
