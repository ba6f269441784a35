"""The alerts of a probe, one function per kind, from histories and logged rows alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.lives.reward_coupling import couple
from headwatch.monitor.alerts import DEFAULTS, Alert, AlertSettings


def find_alerts(
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
        settings: alert thresholds.
    """
    found: list[Alert] = []
    for history in histories:
        if not history.steps:
            continue
        if not found:
            found += inexact_scores(history.steps[-1], checks, settings)
        answers = correct.get(history.family, ())
        here = (
            reward_up_probes_down(history.family, history.steps, answers, training, settings),
            base_dropped(history, settings),
            no_verdict(history, len(answers[-1]) if answers else None, settings),
        )
        found += [alert for alert in here if alert is not None]
    return found


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
        lost, gained = int((before & ~now).sum()), int((~before & now).sum())
        drop = (lost - gained) / len(now)
        if drop < settings.min_drop or sign_test_p(lost, gained) > settings.p_answers:
            continue
        reward = couple(steps[reference:], [0.0] * (n - reference), training, "reward").value
        if len(reward) < settings.min_windows or rising_trend_p(reward) > settings.p_trend:
            continue
        return Alert(
            steps[-1],
            "reward_up_probes_down",
            family,
            f"{family}: since step {steps[reference]} the reward has risen from {reward[0]:.3g} to {reward[-1]:.3g} "
            f"while the accuracy on the frozen probes fell from {before.mean():.0%} to {now.mean():.0%} ({lost} pairs "
            f"lost, {gained} gained): inspect samples, the reward may be hacked.",
            drop,
            settings.min_drop,
        )
    return None


def base_dropped(history: Any, settings: AlertSettings = DEFAULTS) -> Alert | None:
    """Nearly all base heads were dropped."""
    counts = history.latest_counts()
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
            f"gap {history.arrays.rows[-1].metric_gap:.3g}): this probe records no events."
        )
        return Alert(step, "insufficient_signal", family, text, history.arrays.rows[-1].metric_gap, None)
    agreement = history.arrays.rows[-1].split_half
    if agreement < settings.split_half:
        text = (
            f"{family}: head scores of random halves of the pairs correlate with {agreement:.2f} (below "
            f"{settings.split_half:.2g}): too unstable for conclusions about single heads; use more pairs (n_pairs)."
        )
        return Alert(step, "unstable", family, text, agreement, settings.split_half)
    return None


def sign_test_p(lost: int, gained: int) -> float:
    """One-sided exact sign test of more pairs lost than gained."""
    if lost + gained == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, alternative="greater").pvalue)


def rising_trend_p(values: Sequence[float]) -> float:
    """One-sided Kendall test of a rising trend; exact for up to 33 values without ties. 1 for equal values."""
    from scipy.stats import kendalltau

    p = float(kendalltau(np.arange(len(values)), values, alternative="greater").pvalue)
    return 1.0 if np.isnan(p) else p
