"""An event in the life of a head, with the evidence it rests on, and its line in events.jsonl."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from headwatch.io.plain_json import plain

EVENT_KINDS = ("emerged", "pruned", "re-emerged", "dropped", "returned")

CONFIRMED, PENDING, WITHDRAWN = "confirmed", "pending", "withdrawn"
STATUSES = (CONFIRMED, PENDING, WITHDRAWN)


@dataclass(frozen=True)
class Event:
    """One change in the life of one head.

    step: of the probe that first saw it. kind: "emerged", "pruned", "re-emerged", "dropped", or "returned" (a dropped
    base head that is active again). share_before, share_now: the share at the probe compared with (base; or, for
    pruned, re-emerged and returned, the head's own last event) and now.

    The evidence, all of that paired change: difference = share_now - share_before with its 95 % interval (lower to
    upper), p_value, q_value (Benjamini-Hochberg over heads) and level, which q_value had to reach. raw_before, raw_now:
    the mean raw scores at the same two probes, raw_p the p value of their paired change: what the head lost or gained
    in the metric's own units, redistributed or not.
    status: "confirmed", "pending" (seen, and the next probe has yet to see it again) or
    "withdrawn" (it did not). told: step of the later probe that gave the event this status; None: the same probe.

    Under the circuit rule nothing is tested: the evidence is None, share_before and share_now hold the importance, and
    `stability` the share of resamples that keep the head.
    """

    step: int
    family: str
    layer: int
    head: int
    kind: str
    share_before: float | None
    share_now: float | None
    p_value: float | None = None
    q_value: float | None = None
    rule: str = "evidence"
    stability: float | None = None
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None
    level: float | None = None
    raw_before: float | None = None
    raw_now: float | None = None
    raw_p: float | None = None
    status: str = CONFIRMED
    told: int | None = None

    def settled(self, status: str, told: int) -> "Event":
        """The same event with the status that the probe at step `told` gave it."""
        return replace(self, status=status, told=int(told) if told != self.step else None)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None.

        A line's "step" is the probe that wrote it, so that a log's steps never go back and a resumed run can cut it;
        an event that was first seen at an earlier probe says so in "seen".
        """
        values: dict[str, Any] = plain(asdict(self))
        told = values.pop("told")
        return values if told is None else {**values, "step": told, "seen": self.step}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Event":
        """The event of one line of events.jsonl; unknown keys are left out, and older lines lack some."""
        known = {field.name for field in fields(cls)}
        event = cls(**{key: value for key, value in values.items() if key in known})
        return replace(event, step=values["seen"], told=values["step"]) if "seen" in values else event
