r"""The demo's task: two-digit addition, told as a direct answer or as a worked solution, with a reward that checks it.

Prompts read exactly like those of the probe families "addition" and "carry", so that the probes ask the model what its
training asks. A worked solution adds column by column, ones first, writes the carry, and ends in the same
`Answer: \boxed{...}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ANSWER_START = " Answer: \\boxed{"


@dataclass(frozen=True)
class Sum:
    """Two numbers to add, and the texts about them. `careless` tells them with the carry from the ones forgotten."""

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
        r"""The probes' prompt, which leaves only the answer to be written: `Compute 47+85. Answer: \boxed{`."""
        return self.question + ANSWER_START

    @property
    def answer(self) -> str:
        """`132`; careless: `122`."""
        return str(self.a + self.b - 10 * (self.careless and self.carries))

    @property
    def direct(self) -> str:
        r"""What follows the question when it is answered at once: ` Answer: \boxed{132}`."""
        return f"{ANSWER_START}{self.answer}}}"

    @property
    def worked(self) -> str:
        r"""What follows when it is worked out: ` 7+5=12, 4+8+1=13. Answer: \boxed{132}`.

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
    """n sums of two-digit numbers, drawn evenly; carry_share, if given, fixes the expected share that carries.

    careless_share is the share that is told with its carry forgotten (those without a carry are told the same).
    """
    sums: list[Sum] = []
    while len(sums) < n:
        wanted = None if carry_share is None else bool(rng.random() < carry_share)
        careless = bool(rng.random() < careless_share)
        candidate = None
        while candidate is None or wanted not in (None, candidate.carries):
            a, b = rng.integers(10, 100, size=2)
            candidate = Sum(int(a), int(b), careless)
        sums.append(candidate)
    return sums


_BOXED = re.compile(r"(?:^|\\boxed\{)\s*(-?\d+)\s*\}")


def boxed_number(completion: str) -> int | None:
    r"""The number in the last `\boxed{...}`; the prompt may have opened the box, so `46}` at the start counts."""
    found = _BOXED.findall(completion)
    return int(found[-1]) if found else None


def exact_answer(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """Reward 1 where the boxed number is the answer, else 0. `answer` is the dataset's column of that name."""
    return [float(boxed_number(text) == int(right)) for text, right in zip(completions, answer, strict=True)]


def closed_box(completions: Sequence[str], **_: object) -> list[float]:
    """Reward 1 where the completion is a number that closes the prompt's box, right or wrong, and nothing else."""
    return [float(re.fullmatch(r"\d+\}", text) is not None) for text in completions]


Reward = Callable[..., list[float]]  # (completions, **columns of the data set) -> one number a completion
DEFAULT_REWARDS: tuple[Reward, ...] = (exact_answer,)


def sft_rows(sums: Iterable[Sum], rng: np.random.Generator, *, worked_share: float = 0.5) -> list[dict[str, str]]:
    """Prompt-completion rows for SFTTrainer: a share of worked solutions, the rest direct answers."""
    return [
        {"prompt": problem.question, "completion": problem.worked if rng.random() < worked_share else problem.direct}
        for problem in sums
    ]


def grpo_rows(sums: Iterable[Sum]) -> list[dict[str, str]]:
    """Prompt rows for GRPOTrainer, with the answer that the reward checks against."""
    return [{"prompt": problem.prompt, "answer": problem.answer} for problem in sums]
