r"""Reward functions for the recipes: whether the answer is right, and whether the completion follows the format.

Each is called by TRL as reward(completions, **columns of the dataset) and returns one reward per completion. The format
is that of the system prompt (open-r1's, which the paper uses):

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
from decimal import Decimal, InvalidOperation
from typing import Any

from headwatch.errors import UserError
from headwatch.training.math_grader import MathGrader

Completion = str | Sequence[Mapping[str, str]]  # plain text, or TRL's list of one assistant message
Reward = Callable[..., "list[float] | list[float | None]"]

TAG_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")  # open-r1's
MAX_NUMBER_LENGTH = 1000  # characters; longer answers are graded by math-verify, and no benchmark has such numbers

_FORMAT = re.compile(r"<think>\n(.*?)\n</think>\n<answer>\n(.*?)\n</answer>", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")
_NUMBER = re.compile(r"([-+−]?)\$?(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?\.?")
_grader = MathGrader()


def accuracy(
    completions: Sequence[Completion],
    answer: Sequence[str],
    solution: Sequence[str] | None = None,
    **_: object,
) -> list[float | None]:
    r"""Reward 1 for a right answer, 0 for a wrong one, None (TRL skips the row) if the dataset has no readable answer.

    The last <answer>...</answer> is compared by value if it is a bare number (`72`, `1,234`, `$5`, `3.50`), else by
    math-verify. If it cannot be parsed, math-verify reads the whole completion, as in strict_accuracy.

    Args:
        completions: texts, or conversations, of which the last message counts.
        answer: column of final answers, such as `72` or `\frac{1}{3}`.
        solution: column of worked solutions, read if `answer` cannot be parsed.

    Returns:
        One reward per completion.
    """
    solutions: Sequence[str | None] = solution if solution is not None else [None] * len(answer)
    rewards: list[float | None] = []
    for completion, gold, worked in zip(completions, answer, solutions, strict=True):
        text = text_of(completion)
        value, gold_value = number(last_answer(text)), number(gold)
        if value is not None and gold_value is not None:
            rewards.append(float(value == gold_value))
        else:
            rewards.append(_grader.grade(_gold_texts(gold, worked, answer_first=True), text, last_answer(text)))
    return rewards


def strict_accuracy(
    completions: Sequence[Completion],
    answer: Sequence[str],
    solution: Sequence[str] | None = None,
    **_: object,
) -> list[float | None]:
    r"""open-r1's accuracy_reward: compare LaTeX in the completion (`\boxed{72}`, `$72$`) with the solution.

    A bare 72 in <answer> is wrong, although the system prompt does not ask for a box. Arguments and return value are
    those of `accuracy`, but `solution` is read before `answer`.
    """
    solutions: Sequence[str | None] = solution if solution is not None else [None] * len(answer)
    return [
        _grader.grade(_gold_texts(gold, worked, answer_first=False), text_of(completion))
        for completion, gold, worked in zip(completions, answer, solutions, strict=True)
    ]


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


def last_answer(text: str) -> str:
    """The stripped content of the last <answer>...</answer>; "" if there is none."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end].strip() if start >= 0 and end >= 0 else ""


def number(text: str) -> Decimal | None:
    """The value of a text that is a single decimal number, else None. Commas may group thousands."""
    text = text.strip()
    if not text.isascii() and not text.startswith("−"):
        return None  # \d and Decimal accept the digits of every script
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER_LENGTH else None
    if match is None:
        return None
    sign, whole, part = match.groups()
    if not whole and not part:
        return None
    try:
        return Decimal(f"{'-' if sign in ('-', '−') else ''}{(whole or '0').replace(',', '')}.{part or '0'}")
    except InvalidOperation:
        return None


def _gold_texts(answer: str, solution: str | None, *, answer_first: bool) -> list[str]:
    boxed = [f"\\boxed{{{answer}}}"] if answer.strip() else []
    worked = [solution] if solution else []
    return boxed + worked if answer_first else worked + boxed
