"""An event of a head, with its evidence, and its line in events.jsonl."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from headwatch.io.plain_json import plain
from headwatch.model.head_names import head_name

EVENT_KINDS = ("emerged", "pruned", "re-emerged", "dropped", "returned")

CONFIRMED, PENDING, WITHDRAWN = "confirmed", "pending", "withdrawn"
STATUSES = (CONFIRMED, PENDING, WITHDRAWN)


@dataclass(frozen=True, repr=False)
class Event:
    """One change of state of one head.

    The evidence is a paired change of share against a reference probe: the base, or, for pruned, re-emerged and
    returned, the probe of the head's last event. Under the circuit rule nothing is tested: the evidence is None, and
    share_before and share_now hold the importance.

    Attributes:
        step: of the probe that found it first.
        family: the probe family.
        layer: the head's layer.
        head: the head's index in the layer.
        kind: "emerged", "pruned", "re-emerged", "dropped", or "returned" (a dropped base head that is active again).
        share_before: share at the reference probe.
        share_now: share at `step`.
        p_value: of the paired change of share.
        q_value: the same after Benjamini-Hochberg over heads.
        rule: "evidence" or "circuit".
        stability: circuit rule: share of resamples whose circuit keeps the head.
        difference: share_now - share_before.
        lower: lower end of its 95 % interval.
        upper: upper end of it.
        level: what q_value had to reach.
        raw_before: mean raw score at the reference probe, in the metric's units.
        raw_now: mean raw score at `step`.
        raw_p: p value of their paired change.
        patched_before: the share by exact patching at the reference probe; None if the head was not patched there.
        patched_now: the share by exact patching at `step`; None if the head was not patched.
        patched_p: p value of their paired change.
        patching: verdict of exact patching on the event (`lives.exact_patching`): "supports", "same sign" or
            "contradicts"; None if the head was not patched.
        status: "confirmed", "pending" (the next probe has yet to find it again) or "withdrawn" (it did not).
        settled_at: step of the later probe that confirmed or withdrew it; None: no later probe did.
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
    patched_before: float | None = None
    patched_now: float | None = None
    patched_p: float | None = None
    patching: str | None = None
    status: str = CONFIRMED
    settled_at: int | None = None

    def __repr__(self) -> str:
        more = [] if self.rule == "evidence" else [f"{self.rule} rule"]
        more += [] if self.status == CONFIRMED else [self.status]
        return f"Event(step {self.step}: {self.describe()}{''.join(f', {each}' for each in more)})"

    def describe(self) -> str:
        """The event in a few words, with its evidence.

        >>> Event(300, "recall", 17, 3, "emerged", 0.025, 0.06, q_value=0.003).describe()
        'L17.H3 emerged on recall (share 2.5 % -> 6.0 %, q 0.003)'
        """
        value = "share" if self.rule == "evidence" else "importance"
        numbers = [f"{value} {_percent(self.share_before)} -> {_percent(self.share_now)}"]
        if self.q_value is not None:
            numbers.append(f"q {self.q_value:.1g}")
        verb = {"dropped": "was dropped", "pruned": "was pruned"}.get(self.kind, self.kind)
        return f"{head_name(self.layer, self.head)} {verb} on {self.family} ({', '.join(numbers)})"

    def settled(self, status: str, step: int) -> "Event":
        """The same event with the status that the probe at `step` gives it."""
        return replace(self, status=status, settled_at=int(step) if step != self.step else None)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None.

        "step" is the probe that wrote the line, so that the steps of a log never decrease and a resumed run can
        truncate it. If an earlier probe found the event first, that step is "seen".
        """
        values: dict[str, Any] = plain(asdict(self))
        settled_at = values.pop("settled_at")
        return values if settled_at is None else {**values, "step": settled_at, "seen": self.step}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Event":
        """The event of one line of events.jsonl; unknown keys are ignored, keys that older lines lack get defaults."""
        known = {field.name for field in fields(cls)}
        event = cls(**{key: value for key, value in values.items() if key in known})
        return replace(event, step=values["seen"], settled_at=values["step"]) if "seen" in values else event


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
