"""Parameters of the evidence rule."""

from dataclasses import dataclass, fields
from typing import Any

from headwatch.errors import UserError

TESTS = ("t", "sign-flip", "welch")
WEIGHTS = ("size", "equal")
CONFIRMATIONS = ("either", "level", "next", "none")

_OLD_NAMES = {"material": "min_change", "at_work": "require_nonzero_share"}  # in older records


@dataclass(frozen=True)
class EvidenceSettings:
    """The parameters of the evidence rule; every default was chosen by measurement (docs/evidence/validity.md).

    Attributes:
        carry: a head enters the active set inside the smallest set that carries this part of the total |share|.
        keep: a head leaves the active set outside the smallest set that carries this part (hysteresis). Where no true
            share changes (270 heads, about 42 in the set, 32 pairs), 1.9 heads per probe cross the edge without
            hysteresis (keep = carry), 0.30 with 0.85 and 0.27 with 0.90 or 0.95; with 0.90 more planted changes are
            found in time.
        q: Benjamini-Hochberg level over the heads of one family; `confirm` divides it over the probes.
        min_change: the smallest change of a share that counts, as a part of the base's total |share|.
        min_pairs: a family with fewer pairs has insufficient signal.
        min_gap_t: a probe whose mean metric gap has a smaller |t| over pairs has insufficient signal. 4 bounds the
            relative error of the gap by 25 %; a true gap of zero passes 1 time in 2,700 (32 normal pairs).
        test: of a paired change: "t", "sign-flip" (a permutation test), or "welch", an unpaired test for probe sets
            that are drawn afresh at every probe.
        confirm: multiple-testing correction over probes. "level": the k-th probe after the base tests at
            q / (k (k + 1)), which sums to q over any number of probes. "next": tests at q; an event is pending until
            the next probe finds it again. "either": at once at the stricter level, else by the next probe. "none": at q
            at every probe.
        weights: how the sign-flip test divides q among the heads: by "size", how far each head's pairs have moved on
            average, up or down (`paired_change` explains why this keeps the level), or "equal". Other tests use equal
            weights.
        require_nonzero_share: an event requires a share that is significantly non-zero where the head is active
            (`stats.nonzero_share`): at this probe for a head that joins, when it was last active for one that leaves.

    >>> EvidenceSettings(q=0.05).levels(probe=1)
    (0.025, 0.05)
    """

    carry: float = 0.80
    keep: float = 0.90
    q: float = 0.01
    min_change: float = 0.005
    min_pairs: int = 8
    min_gap_t: float = 4.0
    test: str = "sign-flip"
    confirm: str = "either"
    weights: str = "size"
    require_nonzero_share: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.carry <= self.keep <= 1.0:
            raise UserError(
                f"carry={self.carry}, keep={self.keep}: give 0 < carry <= keep <= 1, for example 0.8 and 0.9"
            )
        if not 0.0 < self.q < 1.0:
            raise UserError(f"q={self.q}: give a false-discovery level between 0 and 1, for example 0.01")
        if self.min_change < 0.0 or self.min_gap_t < 0.0:
            raise UserError(f"min_change={self.min_change}, min_gap_t={self.min_gap_t}: neither can be negative")
        if self.min_pairs < 2:
            raise UserError(f"min_pairs={self.min_pairs}: a paired test needs at least 2 pairs")
        for name, known in (("test", TESTS), ("confirm", CONFIRMATIONS), ("weights", WEIGHTS)):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name}={value!r}: give one of {', '.join(map(repr, known))}")

    def levels(self, probe: int) -> tuple[float, float]:
        """The levels of the `probe`-th probe after the base (1, 2, ...).

        Returns:
            The level at which an event is confirmed at once, and the level at which it is pending; a level of 0 is
            never reached.
        """
        strict = self.q / (probe * (probe + 1))
        at_once = {"either": strict, "level": strict, "next": 0.0, "none": self.q}[self.confirm]
        return at_once, self.q if self.confirm in ("either", "next") else 0.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EvidenceSettings":
        """Settings from a manifest: old names are accepted, unknown keys are ignored."""
        known = {field.name for field in fields(cls)}
        renamed = {_OLD_NAMES.get(key, key): value for key, value in values.items()}
        return cls(**{key: value for key, value in renamed.items() if key in known})
