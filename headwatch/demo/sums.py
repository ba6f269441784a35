r"""The demo's task: two-digit addition, as a direct answer or a worked solution, and rewards that check the answer.

Prompts equal those of the probe families "addition" and "carry". A worked solution adds the ones, then the tens with
the carry, and ends in `Answer: \boxed{...}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ANSWER_START = " Answer: \\boxed{"


@dataclass(frozen=True)
class Sum:
    """Two numbers to add, and their texts. `careless` texts omit the carry from the ones."""

    a: int
    b: int
    careless: bool = False

    @property
    def carries(self) -> bool:
        """Whether the ones digits sum to ten or more."""
        return self.a % 10 + self.b % 10 >= 10

    @property
    def question(self) -> str:
        """`Compute 47+85.`"""
        return f"Compute {self.a}+{self.b}."

    @property
    def prompt(self) -> str:
        r"""The probes' prompt, which the answer completes: `Compute 47+85. Answer: \boxed{`."""
        return self.question + ANSWER_START

    @property
    def answer(self) -> str:
        """`132`; careless: `122`."""
        return str(self.a + self.b - 10 * (self.careless and self.carries))

    @property
    def direct(self) -> str:
        r"""Direct completion of the question: ` Answer: \boxed{132}`."""
        return f"{ANSWER_START}{self.answer}}}"

    @property
    def worked(self) -> str:
        r"""Worked completion of the question: ` 7+5=12, 4+8+1=13. Answer: \boxed{132}`.

        Careless: ` 7+5=12, 4+8=12. Answer: \boxed{122}`.
        """
        ones = self.a % 10 + self.b % 10
        tens = self.a // 10 + self.b // 10
        carried = self.carries and not self.careless
        steps = f"{self.a % 10}+{self.b % 10}={ones}, {self.a // 10}+{self.b // 10}{'+1' * carried}={tens + carried}"
        return f" {steps}.{self.direct}"


def sample_sums(
    rng: np.random.Generator, n: int, *, carry_share: float | None = None, careless_share: float = 0.0
) -> list[Sum]:
    """Draw n sums of two-digit numbers uniformly.

    Args:
        rng: source of randomness.
        n: number of sums.
        carry_share: expected share of sums with a carry; None leaves it as drawn.
        careless_share: expected share of careless sums, whose texts differ only where there is a carry.
    """
    sums: list[Sum] = []
    while len(sums) < n:
        carries = None if carry_share is None else bool(rng.random() < carry_share)
        careless = bool(rng.random() < careless_share)
        candidate = None
        while candidate is None or carries not in (None, candidate.carries):
            a, b = rng.integers(10, 100, size=2)
            candidate = Sum(int(a), int(b), careless)
        sums.append(candidate)
    return sums


_BOXED = re.compile(r"(?:^|\\boxed\{)\s*(-?\d+)\s*\}")


def boxed_number(completion: str) -> int | None:
    r"""The number in the last `\boxed{...}`. `46}` at the start counts, since the prompt may end in `\boxed{`."""
    found = _BOXED.findall(completion)
    return int(found[-1]) if found else None


def exact_answer(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """Reward 1 where the boxed number equals the dataset's column `answer`, else 0."""
    return [float(boxed_number(text) == int(right)) for text, right in zip(completions, answer, strict=True)]


def closed_box(completions: Sequence[str], **_: object) -> list[float]:
    """Reward 1 where the completion is a number and `}`, whether the number is right or wrong, else 0."""
    return [float(re.fullmatch(r"\d+\}", text) is not None) for text in completions]


Reward = Callable[..., list[float]]  # (completions, **columns of the dataset) -> one reward per completion
DEFAULT_REWARDS: tuple[Reward, ...] = (exact_answer,)


def sft_rows(sums: Iterable[Sum], rng: np.random.Generator, *, worked_share: float = 0.5) -> list[dict[str, str]]:
    """Prompt-completion rows for SFTTrainer: worked solutions (an expected share) and direct answers."""
    return [
        {"prompt": problem.question, "completion": problem.worked if rng.random() < worked_share else problem.direct}
        for problem in sums
    ]


def grpo_rows(sums: Iterable[Sum]) -> list[dict[str, str]]:
    """Prompt rows for GRPOTrainer, with the right answer for the reward."""
    return [{"prompt": problem.prompt, "answer": problem.answer} for problem in sums]
