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
from decimal import Decimal, InvalidOperation
from typing import Any

from headwatch.errors import UserError
from headwatch.training.math_grader import MathGrader

Completion = str | Sequence[Mapping[str, str]]  # plain text, or TRL's list of one assistant message
Reward = Callable[..., "list[float] | list[float | None]"]

TAG_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")  # as open-r1 counts them
MAX_NUMBER = 1000  # digits: longer answers are graded as text below, and no number of a benchmark is

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
    r"""1 where the completion's answer is right, 0 where not; None (TRL leaves the row out) where the gold is none.

    The last <answer>...</answer> decides where it can be read: a bare number (`72`, `1,234`, `$5`, `3.50`) by value,
    anything else by math-verify. Otherwise math-verify looks through the whole completion, as in strict_accuracy.

    answer: column of final answers, such as `72` or `\frac{1}{3}`. solution: column of worked solutions, read where an
    answer cannot be parsed.
    """
    solutions: Sequence[str | None] = solution if solution is not None else [None] * len(answer)
    rewards: list[float | None] = []
    for completion, right, worked in zip(completions, answer, solutions, strict=True):
        text = text_of(completion)
        said, gold = number(last_answer(text)), number(right)
        if said is not None and gold is not None:
            rewards.append(float(said == gold))
        else:
            rewards.append(_grader.grade(_gold(right, worked, answer_first=True), text, last_answer(text)))
    return rewards


def strict_accuracy(
    completions: Sequence[Completion],
    answer: Sequence[str],
    solution: Sequence[str] | None = None,
    **_: object,
) -> list[float | None]:
    r"""open-r1's accuracy_reward: math-verify on LaTeX in the completion (`\boxed{72}`, `$72$`) against the solution.

    A bare 72 inside <answer> counts as wrong, although the system prompt never asks for a box.
    """
    solutions: Sequence[str | None] = solution if solution is not None else [None] * len(answer)
    return [
        _grader.grade(_gold(right, worked, answer_first=False), text_of(completion))
        for completion, right, worked in zip(completions, answer, solutions, strict=True)
    ]


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


def last_answer(text: str) -> str:
    """What the last <answer>...</answer> of a text holds, without space around it; "" where there is none."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end].strip() if start >= 0 and end >= 0 else ""


def number(text: str) -> Decimal | None:
    """The value of a text that is one decimal number and nothing else, else None. Commas may group by thousands."""
    text = text.strip()
    if not text.isascii() and not text.startswith("−"):
        return None  # \d takes the digits of every script, Decimal too; an answer is asked for in these
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER else None
    if match is None:
        return None
    sign, whole, part = match.groups()
    if not whole and not part:
        return None
    try:
        return Decimal(f"{'-' if sign in ('-', '−') else ''}{(whole or '0').replace(',', '')}.{part or '0'}")
    except InvalidOperation:
        return None


def _gold(answer: str, solution: str | None, *, answer_first: bool) -> list[str]:
    boxed = [f"\\boxed{{{answer}}}"] if answer.strip() else []
    worked = [solution] if solution else []
    return boxed + worked if answer_first else worked + boxed
