"""Alerts of a probe, from histories and logged rows alone.

A *warning* means that something is probably wrong with the training or with the scores. A *status* means that a family
gives no verdict, and why; without it, silence could be taken for "all is well".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.io.plain_json import plain
from headwatch.lives.reward_coupling import couple

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


def alerts(
    histories: Iterable[Any],
    checks: Mapping[str, float | None],
    correct: Mapping[str, Sequence[NDArray[Any]]],
    training: Sequence[Mapping[str, Any]],
    settings: AlertSettings = DEFAULTS,
) -> list[Alert]:
    """All alerts of the last probe.

    Args:
        histories: a HeadHistory by the evidence rule for each family, all with the same last step.
        checks: the pass's own errors: completeness_error, row_sum_error, stream_error (None if not computed).
        correct: family -> per probe, whether the model answered each pair correctly, bool [N].
        training: rows of the trainer's log, each with its "step".
    """
    found: list[Alert] = []
    for history in histories:
        if not history.steps:
            continue
        if not found and (inexact := inexact_scores(history.steps[-1], checks, settings)):
            found += inexact
        here = [
            reward_up_probes_down(history.family, history.steps, correct.get(history.family, ()), training, settings),
            base_dropped(history, settings),
            no_verdict(history, len(answers[-1]) if (answers := correct.get(history.family)) else None, settings),
        ]
        found += [alert for alert in here if alert is not None]
    return found


def alert_scalars(found: Iterable[Alert]) -> dict[str, int]:
    """Number of alerts, in all ("alerts") and of each kind ("alerts/<kind>")."""
    found = list(found)
    return {"alerts": len(found)} | {f"alerts/{kind}": sum(a.kind == kind for a in found) for kind in KINDS}


# --- each kind ------------------------------------------------------------------------------------------------------


def reward_up_probes_down(
    family: str,
    steps: Sequence[int],
    correct: Sequence[ArrayLike],
    training: Sequence[Mapping[str, Any]],
    settings: AlertSettings = DEFAULTS,
) -> Alert | None:
    """The reward rises while accuracy on the frozen probes drops, as in reward hacking.

    Tests: a rising trend of the reward's means between probes (Kendall), and pairs that changed from right to wrong
    against pairs that changed from wrong to right (exact sign test).
    """
    n = len(steps)
    if len(correct) != n or n < 2:
        return None
    for reference in sorted({0, max(0, n - 1 - settings.window)}):
        before, now = (np.asarray(correct[i], np.bool_) for i in (reference, n - 1))
        lost, won = int((before & ~now).sum()), int((~before & now).sum())
        drop = (lost - won) / len(now)
        if drop < settings.min_drop or sign_test(lost, won) > settings.p_answers:
            continue
        reward = couple(steps[reference:], [0.0] * (n - reference), training, "reward").value
        if len(reward) < settings.min_windows or trend_p(reward) > settings.p_trend:
            continue
        return Alert(
            steps[-1],
            "reward_up_probes_down",
            family,
            f"{family}: since step {steps[reference]} the reward has risen from {reward[0]:.3g} to {reward[-1]:.3g} "
            f"while the accuracy on the frozen probes fell from {before.mean():.0%} to {now.mean():.0%} ({lost} pairs "
            f"lost, {won} gained): inspect samples, the reward may be hacked.",
            drop,
            settings.min_drop,
        )
    return None


def base_dropped(history: Any, settings: AlertSettings = DEFAULTS) -> Alert | None:
    """Nearly all base heads were dropped."""
    counts = {label: n[-1] for label, n in history.counts().items()}
    base = counts["base"] + counts["retained"] + counts["dropped"]
    if base < settings.min_base or counts["dropped"] < settings.dropped * base:
        return None
    return Alert(
        history.steps[-1],
        "base_dropped",
        history.family,
        f"{history.family}: {counts['dropped']} of {base} base heads were dropped: "
        "the model no longer solves this as the base did.",
        counts["dropped"] / base,
        settings.dropped,
    )


def inexact_scores(step: int, checks: Mapping[str, float | None], settings: AlertSettings = DEFAULTS) -> list[Alert]:
    """A check of the pass exceeds its threshold."""
    limits = {
        "completeness_error": (settings.completeness, "; use more points of the path (scoring.steps: 10)"),
        "row_sum_error": (settings.row_sums, ""),
        "stream_error": (settings.stream, ""),
    }
    return [
        Alert(
            step,
            "inexact",
            "",
            f"{name.replace('_', ' ')} is {value:.3g}, above {limit:.2g}: scores are approximate{fix}",
            value,
            limit,
        )
        for name, (limit, fix) in limits.items()
        if (value := checks.get(name)) is not None and not value <= limit
    ]


def no_verdict(history: Any, n_pairs: int | None = None, settings: AlertSettings = DEFAULTS) -> Alert | None:
    """Too few pairs, too small a metric gap, or unstable head scores."""
    step, family = history.steps[-1], history.family
    if history.signal[-1] != "ok":
        least = history.settings.min_pairs
        if n_pairs is not None and n_pairs < least:
            text = f"{family}: insufficient data, {n_pairs} pairs where {least} are needed: no events are recorded."
            return Alert(step, "insufficient_data", family, text, n_pairs, least)
        text = (
            f"{family}: insufficient signal, the metric differs too little between clean and corrupted prompts (mean "
            f"gap {history.metric_gap[-1]:.3g}): this probe records no events."
        )
        return Alert(step, "insufficient_signal", family, text, history.metric_gap[-1], None)
    agreement = history.split_half[-1]
    if agreement < settings.split_half:
        text = (
            f"{family}: head scores of random halves of the pairs correlate with {agreement:.2f} (below "
            f"{settings.split_half:.2g}): too unstable for conclusions about single heads; use more pairs (n_pairs)."
        )
        return Alert(step, "unstable", family, text, agreement, settings.split_half)
    return None


# --- small tests ----------------------------------------------------------------------------------------------------


def sign_test(lost: int, won: int) -> float:
    """One-sided exact sign test: the probability of at least `lost` out of lost + won fair coins."""
    n = lost + won
    return sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n


def trend_p(values: ArrayLike) -> float:
    """One-sided p-value of a rising trend: Kendall's S against the order of entries, normal with ties, n >= 4."""
    x = np.asarray(values, np.float64)
    n = len(x)
    s = float(np.sign(x[None, :] - x[:, None])[np.triu_indices(n, 1)].sum())
    ties: NDArray[np.int64] = np.unique(x, return_counts=True)[1]
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18.0
    if variance <= 0.0:
        return 1.0
    return 0.5 * math.erfc((s - 1.0) / math.sqrt(2.0 * variance))  # the continuity correction moves it against a rise
