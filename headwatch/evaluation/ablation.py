"""Heads switched off or scaled, against none and against random heads, on the same problems with the same seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from headwatch.evaluation.harness import TaskResult
from headwatch.evaluation.head_groups import matched_sets, names_of
from headwatch.evaluation.pass_at_k import Comparison, bootstrap_mean, compare
from headwatch.evaluation.run import Result
from headwatch.model.head_names import Head
from headwatch.report.heads_off import arm_label

NONE = "none"


@dataclass(frozen=True)
class Arm:
    """One condition.

    Attributes:
        name: unique; also the folder of its answers.
        heads: {head: factor}.
        group: the group of heads that it scales, or, of a random set, that it is matched to; "" for none.
        factor: of the heads.
        random: number of the random set; None for the group itself.
    """

    name: str
    heads: Mapping[Head, float] = field(default_factory=dict)
    group: str = ""
    factor: float = 1.0
    random: int | None = None

    @property
    def label(self) -> str:
        """Its name for readers."""
        return arm_label({"group": self.group, "factor": self.factor, "random": self.random})


def make_arms(
    groups: Mapping[str, Sequence[Head]], factors: Sequence[float], shape: tuple[int, int], n_random: int, seed: int
) -> list[Arm]:
    """All arms: none, then each group with each factor, each followed by its random sets.

    Args:
        groups: name -> heads.
        factors: 0 switches heads off.
        shape: (L, H) of the model.
        n_random: random sets per group, the same for all factors; matched in layer and size.
        seed: of the random sets.
    """
    arms = [Arm(NONE)]
    for group, heads in groups.items():
        sets = matched_sets(heads, shape, n_random, seed)
        for factor in factors:
            label = f"{group}-x{factor:g}"
            arms.append(Arm(label, dict.fromkeys(heads, factor), group, factor))
            arms += [
                Arm(f"{label}-random{number}", dict.fromkeys(drawn, factor), group, factor, number)
                for number, drawn in enumerate(sets, start=1)
            ]
    return arms


def run_arms(arms: Sequence[Arm], evaluate: Callable[[Arm], Result]) -> dict[str, Any]:
    """Evaluate all arms on one benchmark; returns the table's rows and the comparisons, as plain values.

    Args:
        arms: of `make_arms`.
        evaluate: gives the result of an arm.
    """
    results = {arm.name: evaluate(arm) for arm in arms}
    none = results[NONE]
    rows = []
    for arm in arms:
        result = results[arm.name]
        row: dict[str, Any] = {
            "arm": arm.name,
            "group": arm.group,
            "factor": arm.factor,
            "random": arm.random,
            "heads": names_of(arm.heads),
            "problems": len(result.problems),
            "samples": result.grades.shape[1],
            "pass1": asdict(result.pass_at(1)),
            "tokens": result.tokens,
            "unfinished": result.unfinished,
        }
        if arm.name != NONE:
            row["against_none"] = _plain(compare(result.accuracy, none.accuracy, none.problems))
        rows.append(row)
    against = [_against_random(arm, arms, results, none) for arm in arms if arm.group and arm.random is None]
    return {"arms": rows, "against_random": [row for row in against if row is not None]}


def unsolved(suite: str, none: Result) -> str:
    """A warning for a benchmark of which nothing is solved with nothing off."""
    cut = f" ({100 * none.unfinished:.0f} % of the answers were cut: raise --max-tokens)" if none.unfinished else ""
    return f"{suite}: with nothing off the model solves no problem{cut}, so heads that are off cannot cost anything"


def compare_tasks(arms: Sequence[Arm], found: Mapping[str, TaskResult]) -> dict[str, dict[str, Any]]:
    """`run_arms` of every metric of lm-evaluation-harness that is right or wrong for each document.

    Args:
        arms: of `make_arms`.
        found: name of an arm -> its result.
    """
    graded = {name: of_task.results() for name, of_task in found.items()}
    in_all = [metric for metric in graded[NONE] if all(metric in own for own in graded.values())]
    return {metric: run_arms(arms, lambda arm, of=metric: graded[arm.name][of]) for metric in in_all}  # type: ignore[misc]


def _against_random(
    arm: Arm, arms: Sequence[Arm], results: Mapping[str, Result], none: Result
) -> dict[str, Any] | None:
    """An arm against the mean of its random sets; None without random sets."""
    own = [a for a in arms if a.group == arm.group and a.factor == arm.factor and a.random is not None]
    if not own:
        return None
    accuracy = np.stack([results[a.name].accuracy for a in own])
    mine = results[arm.name]
    found = compare(mine.accuracy, accuracy.mean(axis=0), mine.problems)
    means = accuracy.mean(axis=1)
    # The rank of the arm among the random sets: its smallest possible value is 1 / (sets + 1).
    as_low = int((means <= mine.accuracy.mean()).sum())
    return {
        "arm": arm.name,
        "sets": len(own),
        "random_mean": asdict(bootstrap_mean(accuracy.mean(axis=0))),
        "random_lowest": float(means.min()),
        "random_highest": float(means.max()),
        "random_tokens": _mean([results[a.name].tokens for a in own]),
        "random_unfinished": _mean([results[a.name].unfinished for a in own]),
        "random_against_none": _plain(compare(accuracy.mean(axis=0), none.accuracy, none.problems)),
        "difference": asdict(found.difference),
        "p_value": found.p_value,
        "rank_p": (1 + as_low) / (1 + len(own)),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Their mean; None where one is unknown."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _plain(found: Comparison) -> dict[str, Any]:
    return {
        "difference": asdict(found.difference),
        "p_value": found.p_value,
        "newly_right": list(found.newly_right),
        "newly_wrong": list(found.newly_wrong),
        "mcnemar_p": found.mcnemar_p,
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """The rows as text, the random sets of a group as one: percentages with 95 % intervals, differences in points."""
    titles = ("heads", "tokens", "cut %", "pass@1 %", "change", "p", "right", "wrong", "McNemar p")
    widths = (5, 6, 5, 20, 22, 7, 5, 5, 9)
    lines = [" ".join([f"{'':<28}", *(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))])]
    by_name = {row["arm"]: row for row in found["against_random"]}
    for arm in found["arms"]:
        if arm["random"] is not None:
            continue
        lines.append(_line(arm_label(arm), arm))
        if (other := by_name.get(arm["arm"])) is not None:
            together = {
                "heads": arm["heads"],
                "tokens": other["random_tokens"],
                "unfinished": other["random_unfinished"],
                "pass1": other["random_mean"],
                "against_none": other["random_against_none"],
            }
            lines.append(_line(arm_label({**arm, "random": 1}, other["sets"]), together))
    labels = {arm["arm"]: arm_label(arm) for arm in found["arms"]}
    for row in found["against_random"]:
        lines.append(
            f"{labels[row['arm']]} against {row['sets']} random sets (mean {_interval(row['random_mean'])}, "
            f"{100 * row['random_lowest']:.1f} to {100 * row['random_highest']:.1f}): "
            f"{_interval(row['difference'], sign=True)} points, p {row['p_value']:.3g} over problems, "
            f"rank p {row['rank_p']:.2g} among the sets"
        )
    return lines


def _line(label: str, row: Mapping[str, Any]) -> str:
    line = f"{label:<28} {len(row['heads']):>5} {_length(row)} {_interval(row['pass1']):>20}"
    if "against_none" not in row:
        return line
    other = row["against_none"]
    return (
        f"{line} {_interval(other['difference'], sign=True):>22} {other['p_value']:>7.3g} "
        f"{len(other['newly_right']):>5} {len(other['newly_wrong']):>5} {other['mcnemar_p']:>9.3g}"
    )


def _length(row: Mapping[str, Any]) -> str:
    """Mean tokens per answer, and the percentage of answers that were cut at the longest length; - where unknown."""
    if row["tokens"] is None or row["unfinished"] is None:
        return f"{'-':>6} {'-':>5}"
    return f"{row['tokens']:>6.0f} {100 * row['unfinished']:>5.1f}"


def _interval(value: Mapping[str, float], sign: bool = False) -> str:
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if sign else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(*(100 * value[name] for name in ("value", "low", "high")))
