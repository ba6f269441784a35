r"""Reward functions for the recipes: whether the answer is right, and whether the completion follows the format.

TRL calls each as reward(completions, **columns of the dataset); it returns one reward per completion. The format is
that of the system prompt (open-r1's, which the paper uses):

    <think>
    ...
    </think>
    <answer>
    ...
    </answer>
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headwatch.errors import UserError
from headwatch.grading.answers import final_answer, final_latex
from headwatch.grading.grade import grade_answers
from headwatch.grading.math_grader import MathGrader

Completion = str | Sequence[Mapping[str, str]]  # plain text, or TRL's list of one assistant message
Reward = Callable[..., "list[float] | list[float | None]"]

TAG_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")  # open-r1's

_FORMAT = re.compile(r"<think>\n(.*?)\n</think>\n<answer>\n(.*?)\n</answer>", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")
_grader = MathGrader()


def accuracy(
    completions: Sequence[Completion],
    answer: Sequence[str],
    solution: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **_: object,
) -> list[float | None]:
    r"""Reward 1 if the completion's whole answer is right, else 0; None if the dataset's answer cannot be parsed.

    The answer is the content of the last <answer> block; without a block, the last \boxed{...}, or LaTeX after "the
    answer is". Dollar signs, a box, "The answer is", `x =`, units and thousands separators around a value are allowed
    (`headwatch.grading.answers`). A text that only contains, lists or ends in the right value is wrong.

    Args:
        completions: texts, or conversations, of which the last message counts.
        answer: column of final answers, such as `72` or `\frac{1}{3}`.
        solution: column of worked solutions, read if an answer cannot be parsed.
        log_metric: TRL's logger for reward functions; receives the counts of slow and timed-out comparisons.

    Returns:
        One reward per completion. TRL skips rows whose reward is None.
    """
    found = [final_answer(text_of(completion)) for completion in completions]
    return _logged(grade_answers(found, answer, solution, _grader), log_metric)


def strict_accuracy(
    completions: Sequence[Completion],
    answer: Sequence[str],
    solution: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **_: object,
) -> list[float | None]:
    r"""Like open-r1's accuracy_reward: compare the last \boxed{...} or `$...$` of the completion as a whole.

    A bare 72 in <answer> is wrong, although the system prompt does not ask for a box. The right answer is taken from
    `solution`, or from `answer` if that is missing. Arguments and return value are those of `accuracy`.
    """
    found = [final_latex(text_of(completion)) for completion in completions]
    return _logged(grade_answers(found, answer, solution, _grader, answer_first=False), log_metric)


def _logged(rewards: list[float | None], log_metric: Callable[[str, float], None] | None) -> list[float | None]:
    """The rewards, after logging the counts of comparisons."""
    if log_metric is not None:
        for name, total in vars(_grader.counts).items():
            log_metric(f"grader/{name}", float(total))
    return rewards


def format(completions: Sequence[Completion], **_: object) -> list[float]:
    """Reward 1 where the whole completion has the format above and contains each tag once, else 0."""
    return [
        float(_FORMAT.fullmatch(text) is not None and len(_TAGS.findall(text)) == 4)
        for text in map(text_of, completions)
    ]


def tag_count(completions: Sequence[Completion], **_: object) -> list[float]:
    """Reward 0.25 for each of the four tags that occurs exactly once on its own line (open-r1's tag_count_reward)."""
    return [0.25 * sum(text.count(tag) == 1 for tag in TAG_LINES) for text in map(text_of, completions)]


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "strict_accuracy": strict_accuracy,
    "format": format,
    "tag_count": tag_count,
}


def resolve(names: Sequence[str]) -> list[Reward]:
    """Look up rewards by name: a key of REWARDS, or a dotted path such as `my_package.rewards.brevity`.

    Raises:
        UserError: no name, an unknown name, or a path that is not a function.
    """
    found: list[Reward] = []
    for name in names:
        if name in REWARDS:
            found.append(REWARDS[name])
            continue
        if "." not in name:
            near = difflib.get_close_matches(name, REWARDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the rewards are {', '.join(REWARDS)}"
            raise UserError(f"--rewards {name}: no such reward; {hint} (for your own function, give a dotted path)")
        module, _, attribute = name.rpartition(".")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"--rewards {name}: {error}") from error
        if not callable(function):
            raise UserError(f"--rewards {name}: not a function of (completions, **columns)")
        found.append(function)
    if not found:
        raise UserError(f"--rewards: name at least one of {', '.join(REWARDS)}")
    return found


def text_of(completion: Completion) -> str:
    """The text of a completion, or of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    content: Any = completion[-1].get("content") if completion else ""
    return content or ""
