r"""The recipes' rewards: is the answer right, is the completion laid out as asked, how much of the layout is there.

Each takes TRL's (completions, **columns of the data set) and returns one number a completion. Layout, from the system
prompt (open-r1's, which the paper uses):

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
from headwatch.training.answers import expression, final_answer, final_latex, number, separators
from headwatch.training.math_grader import MathGrader, Task

Completion = str | Sequence[Mapping[str, str]]  # plain text, or TRL's list of one assistant message
Reward = Callable[..., "list[float] | list[float | None]"]

TAG_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")  # as open-r1 counts them

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
    r"""1 where the completion's answer is right as a whole, 0 where not; None where the gold answer cannot be read.

    The answer is what the last <answer> block holds; without a block the last \boxed{...}, or LaTeX that follows "the
    answer is". Dollars, a box, "The answer is", `x =`, units and thousands separators around a value are allowed
    (`headwatch.training.answers`); a text that contains, lists or ends in the right value is wrong.

    Args:
        completions: texts, or TRL's conversations.
        answer: column of final answers, such as `72` or `\frac{1}{3}`.
        solution: column of worked solutions, read where an answer cannot be parsed.
        log_metric: TRL's logger of reward functions; slow and timed-out comparisons are counted there.
    """
    found = [final_answer(text_of(completion)) for completion in completions]
    return _graded(found, answer, solution, answer_first=True, log_metric=log_metric)


def strict_accuracy(
    completions: Sequence[Completion],
    answer: Sequence[str],
    solution: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **_: object,
) -> list[float | None]:
    r"""As open-r1's accuracy_reward, LaTeX alone: the last \boxed{...} or `$...$` of the completion, as a whole.

    A bare 72 inside <answer> counts as wrong, although the system prompt never asks for a box. Gold is the solution,
    or the answer where there is none. Arguments as for `accuracy`.
    """
    found = [final_latex(text_of(completion)) for completion in completions]
    return _graded(found, answer, solution, answer_first=False, log_metric=log_metric)


def _graded(
    found: Sequence[str],
    answer: Sequence[str],
    solution: Sequence[str] | None,
    *,
    answer_first: bool,
    log_metric: Callable[[str, float], None] | None,
) -> list[float | None]:
    solutions: Sequence[str | None] = solution if solution is not None else [None] * len(answer)
    rewards: list[float | None] = []
    open_: dict[int, Task] = {}
    for index, (text, right, worked) in enumerate(zip(found, answer, solutions, strict=True)):
        mine, gold = expression(text), expression(right)
        value, wanted = number(mine), number(gold)
        golds = _gold(gold or right, worked, answer_first=answer_first)
        if value is not None and wanted is not None and answer_first:
            rewards.append(float(value == wanted))
        elif mine and answer_first and mine.replace(" ", "") == gold.replace(" ", ""):
            rewards.append(1.0)
        elif not golds:
            rewards.append(None)
        elif not mine or (gold and separators(mine) != separators(gold)):
            rewards.append(0.0)
            if not gold:  # whether the gold answer can be read decides between wrong and left out
                open_[index] = Task(tuple(golds), "0")
        else:
            rewards.append(0.0)
            open_[index] = Task(tuple(golds), mine)
    for index, grade in zip(open_, _grader.grade(list(open_.values())), strict=True):
        rewards[index] = None if grade is None else grade if expression(found[index]) else 0.0
    if log_metric is not None:
        for name, value_ in vars(_grader.counts).items():
            log_metric(f"grader/{name}", float(value_))
    return rewards


def format(completions: Sequence[Completion], **_: object) -> list[float]:
    """1 where the whole completion is one block of thought and one answer, laid out as above, each tag once."""
    return [
        float(_FORMAT.fullmatch(text) is not None and len(_TAGS.findall(text)) == 4)
        for text in map(text_of, completions)
    ]


def tag_count(completions: Sequence[Completion], **_: object) -> list[float]:
    """A quarter for each of the four tags that stands on its own line exactly once (open-r1's tag_count_reward)."""
    return [0.25 * sum(text.count(tag) == 1 for tag in TAG_LINES) for text in map(text_of, completions)]


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "strict_accuracy": strict_accuracy,
    "format": format,
    "tag_count": tag_count,
}


def resolve(names: Sequence[str]) -> list[Reward]:
    """The rewards of these names: one of REWARDS, or a dotted path such as `my_package.rewards.brevity`.

    UserError for a name that is neither, or a path that leads to no function.
    """
    found: list[Reward] = []
    for name in names:
        if name in REWARDS:
            found.append(REWARDS[name])
            continue
        if "." not in name:
            near = difflib.get_close_matches(name, REWARDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(REWARDS)}"
            raise UserError(f"--rewards {name}: no such reward; {hint} (a dotted path names a function of your own)")
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
    """The text of a completion; of a conversation, its last message's."""
    if isinstance(completion, str):
        return completion
    content: Any = completion[-1].get("content") if completion else ""
    return content or ""


def _gold(answer: str, solution: str | None, *, answer_first: bool) -> list[str]:
    boxed = [f"\\boxed{{{answer}}}"] if answer.strip() else []
    worked = [solution] if solution else []
    return boxed + worked if answer_first else worked + boxed
