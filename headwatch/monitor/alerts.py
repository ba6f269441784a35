"""What an alert is: its kinds, its thresholds, its record. `alert_rules` finds the alerts of a probe.

A *warning* means that something is probably wrong with the training or with the scores. A *status* means that a family
gives no verdict, and why; without it, silence could be taken for "all is well".
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from headwatch.io.plain_json import plain

WARNING, STATUS = "warning", "status"

# Every kind, with its level; each has a scalar alerts/<kind>.
KINDS = {
    "reward_up_probes_down": WARNING,
    "base_dropped": WARNING,
    "inexact": WARNING,
    "insufficient_data": STATUS,
    "insufficient_signal": STATUS,
    "unstable": STATUS,
}


@dataclass(frozen=True)
class AlertSettings:
    """Alert thresholds.

    Attributes:
        p_answers: level of the exact sign test on pairs whose answer changed; strict, because every probe tests.
        p_trend: level of the trend test on the reward.
        min_drop: smallest drop of accuracy that counts.
        window: a probe is compared with the base and with the probe this many probes ago, to detect late drops.
        min_windows: smallest number of rewards for a trend test.
        dropped: fraction of the base heads whose loss raises "base_dropped".
        min_base: smallest number of base heads for that alert.
        completeness: largest accepted completeness error.
        row_sums: largest accepted row-sum error.
        stream: largest accepted stream error beyond rounding.
        split_half: smallest accepted Spearman correlation of head scores between random halves of the pairs.
    """

    p_answers: float = 0.001
    p_trend: float = 0.005
    min_drop: float = 0.05
    window: int = 8
    min_windows: int = 6
    dropped: float = 0.9
    min_base: int = 3
    completeness: float = 0.25
    row_sums: float = 0.05
    stream: float = 0.05
    split_half: float = 0.5


DEFAULTS = AlertSettings()


@dataclass(frozen=True)
class Alert:
    """One sentence about one probe.

    Attributes:
        step, kind, family: what it is about; family "" means all.
        text: the sentence.
        value, limit: the number that crossed a threshold, and the threshold.
    """

    step: int
    kind: str
    family: str
    text: str
    value: float | None = None
    limit: float | None = None

    @property
    def level(self) -> str:
        """Either "warning" or "status"."""
        return KINDS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None."""
        values: dict[str, Any] = plain({**asdict(self), "level": self.level})
        return values


def alert_scalars(found: Iterable[Alert]) -> dict[str, int]:
    """Number of alerts, in all ("alerts") and of each kind ("alerts/<kind>")."""
    found = list(found)
    return {"alerts": len(found)} | {f"alerts/{kind}": sum(a.kind == kind for a in found) for kind in KINDS}
