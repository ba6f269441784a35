"""What switching heads off shows, in sentences that follow from the numbers of `evaluation.ablation.run_arms`."""

from collections.abc import Mapping
from typing import Any

GROUPS = {"base": "the base's heads", "circuit": "the circuit's heads", "heads": "the given heads"}
"""Group -> its name for readers; of the other groups, which are states of heads, "GROUP heads"."""


def arm_label(arm: Mapping[str, Any], sets: int | None = None) -> str:
    """The name of an arm for readers.

    Args:
        arm: its row, with "group", "random" (number of the random set, or None) and "factor".
        sets: of an arm of random heads: how many sets stand for it together; None names the set of the arm alone.

    >>> arm_label({"group": "", "random": None, "factor": 1.0})
    'nothing off'
    >>> arm_label({"group": "emerged", "random": None, "factor": 0.0})
    'emerged heads off'
    >>> arm_label({"group": "base", "random": None, "factor": 0.5})
    "the base's heads × 0.5"
    >>> arm_label({"group": "emerged", "random": 1, "factor": 0.0}, sets=5)
    'random heads off (5 sets)'
    """
    if not arm["group"]:
        return "nothing off"
    factor = arm.get("factor")
    what = "off" if not factor else f"× {factor:g}"
    if arm["random"] is None:
        return f"{GROUPS.get(arm['group'], arm['group'] + ' heads')} {what}"
    return f"random heads {what}, set {arm['random']}" if sets is None else f"random heads {what} ({sets} sets)"


def verdict(change: Mapping[str, float], other: Mapping[str, Any], factor: float | None = 0.0) -> str:
    """Do these heads matter, and more than random ones?

    Args:
        change: difference of the accuracy from that with all heads on, with its interval: value, low, high.
        other: the comparison with random sets: difference (from their mean), sets, rank_p.
        factor: of the heads; there is a verdict only on heads that are off.

    Returns:
        One sentence; "" where the heads were scaled.
    """
    if factor:
        return ""
    if change["high"] >= 0.0:
        return "On this task the model does not measurably need these heads."
    sets, as_low = other["sets"], round(other["rank_p"] * (1 + other["sets"])) - 1
    if other["difference"]["low"] > 0.0:
        return "They matter less than random heads, which cost more on average."
    if other["difference"]["high"] >= 0.0:
        return "They matter no more than random heads."
    if other["rank_p"] <= 0.05:
        return f"They matter more than random heads: no random set costs as much (rank p {other['rank_p']:.2g})."
    if not as_low:
        return (
            f"They matter more than the {sets} random sets, which are too few to claim it of random heads in general "
            f"(rank p {other['rank_p']:.2g})."
        )
    verb = "costs" if as_low == 1 else "cost"
    return (
        f"They matter more than random heads on average, but {as_low} of the {sets} random sets {verb} as much or more."
    )


def against_random(arm: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The comparison of an arm with its random sets, in one or two sentences.

    Args:
        arm: the arm's row, with against_none.
        other: its row of against_random.
    """
    difference = other["difference"]
    low, high = (_points(difference[end]) for end in ("low", "high"))
    text = (
        f"{arm_label(arm)}: {_percent(arm['pass1']['value'])} % right; the same with random heads, as many in the same "
        f"layers: {_percent(other['random_mean']['value'])} % on average ({other['sets']} sets, "
        f"{_percent(other['random_lowest'])} to {_percent(other['random_highest'])} %), a difference of "
        f"{_points(difference['value'])} points [{low}, {high}]; rank p {other['rank_p']:.2g}. "
    )
    return (text + verdict(arm["against_none"]["difference"], other, arm.get("factor"))).strip()


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
