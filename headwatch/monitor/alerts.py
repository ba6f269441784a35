"""Alerts: what a user should be told at once, from histories and rows alone. Pure numpy, thresholds named here.

Two kinds of sentence. A *warning* says that something is probably wrong with the training or with the scores. A
*status* says that headwatch has nothing to say, and why: silence could be taken for "all is well". A run in which
nothing happens raises no warning.
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
    """The thresholds.

    p_answers, p_trend: of the one-sided tests behind "reward_up_probes_down", the exact sign test on pairs whose answer
      changed between right and wrong, and the trend test on the reward; the first is the stricter one because it is
      made at every probe. min_drop: the smallest fall of accuracy that counts.
      window: the probe so many probes ago is compared with besides the base, so that a late fall is seen too.
    min_windows: rewards of so many probes are needed to speak of a trend.
    dropped: this part of the base's heads gone is "nearly all"; of at least min_base heads.
    completeness, row_sums, stream: above these the pass's own checks say that scores are not what they should be, in
      any dtype (1-2 % were measured in bfloat16).
    split_half: where random halves of the pairs agree less than this on the order of heads (Spearman), half of that
      order is noise of the pairs.
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
    """One sentence about one probe. value and limit: the number that crossed a threshold, and the threshold."""

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
        checks: the pass's own errors: completeness_error, row_sum_error, stream_error (None where not computed).
        correct: family -> for each probe, whether each of its pairs was answered right, bool [N].
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
            nothing_to_say(history, len(answers[-1]) if (answers := correct.get(history.family)) else None, settings),
        ]
        found += [alert for alert in here if alert is not None]
    return found


def alert_scalars(found: Iterable[Alert]) -> dict[str, int]:
    """alerts: how many there are now; alerts/<kind>: of each kind, 0 where there is none."""
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
    """The reward rises while the model gets worse at the frozen probes: what reward hacking looks like from outside.

    Both are tests: of the reward's means between probes for a rising trend (Kendall), and of the pairs that
    went from right to wrong against those that went the other way (exact sign test).
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
            f"lost, {won} won): look at samples, the reward may be hacked.",
            drop,
            settings.min_drop,
        )
    return None


def base_dropped(history: Any, settings: AlertSettings = DEFAULTS) -> Alert | None:
    """Nearly all heads that carried the base model's work have lost it, each with evidence."""
    counts = {label: n[-1] for label, n in history.counts().items()}
    base = counts["base"] + counts["retained"] + counts["dropped"]
    if base < settings.min_base or counts["dropped"] < settings.dropped * base:
        return None
    return Alert(
        history.steps[-1],
        "base_dropped",
        history.family,
        f"{history.family}: {counts['dropped']} of {base} heads that carried the base model's work were dropped: "
        "the model no longer does this the way the base did.",
        counts["dropped"] / base,
        settings.dropped,
    )


def inexact_scores(step: int, checks: Mapping[str, float | None], settings: AlertSettings = DEFAULTS) -> list[Alert]:
    """The pass's own checks fail."""
    limits = {
        "completeness_error": (settings.completeness, "; take more points of the path (steps=10)"),
        "row_sum_error": (settings.row_sums, ""),
        "stream_error": (settings.stream, ""),
    }
    return [
        Alert(
            step,
            "inexact",
            "",
            f"{name.replace('_', ' ')} is {value:.3g}, above {limit:.2g}: scores are only roughly right{fix}",
            value,
            limit,
        )
        for name, (limit, fix) in limits.items()
        if (value := checks.get(name)) is not None and not value <= limit
    ]


def nothing_to_say(history: Any, n_pairs: int | None = None, settings: AlertSettings = DEFAULTS) -> Alert | None:
    """Too few pairs, too small a gap, or an order of heads that is mostly noise of the pairs."""
    step, family = history.steps[-1], history.family
    if history.signal[-1] != "ok":
        least = history.settings.min_pairs
        if n_pairs is not None and n_pairs < least:
            text = f"{family}: insufficient data, {n_pairs} pairs where {least} are needed: no lives are told."
            return Alert(step, "insufficient_data", family, text, n_pairs, least)
        text = (
            f"{family}: insufficient signal, clean and corrupted prompts score too much alike (mean metric gap "
            f"{history.metric_gap[-1]:.3g}): no lives are told from this probe."
        )
        return Alert(step, "insufficient_signal", family, text, history.metric_gap[-1], None)
    agreement = history.split_half[-1]
    if agreement < settings.split_half:
        text = (
            f"{family}: random halves of the pairs agree on the order of heads with {agreement:.2f} only (below "
            f"{settings.split_half:.2g}): too unstable to say much about single heads; take more pairs (n_pairs)."
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
