"""How answers are sampled: settings, the prompt of a problem, and the order of the work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headwatch.errors import UserError
from headwatch.evaluation.benchmarks import Problem
from headwatch.probes.system_prompts import SYSTEM_PROMPTS
from headwatch.probes.thinking import chat_text

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True)
class SamplingSettings:
    r"""How answers are sampled; the defaults are the paper's.

    Attributes:
        samples: per problem.
        temperature: 0 is greedy, and then one sample is enough.
        top_p: nucleus.
        top_k: None is no limit (but the 1,024 most likely tokens).
        max_tokens: longest answer; the model's context may end it earlier.
        seed: of everything that is drawn.
        batch_size: answers per batch. Another batch size may change answers, because sums round differently.
        system_prompt: a name (open-r1, none) or a text.
        instruction: added to the problem; "" for none.
        think: True or False passes enable_thinking to the chat template; None leaves it out.

    Raises:
        UserError: a value is out of range.
    """

    samples: int = 4
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int | None = None
    max_tokens: int = 32768
    seed: int = 0
    batch_size: int = 16
    system_prompt: str = "none"
    instruction: str = INSTRUCTION
    think: bool | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0) or not 0 < self.top_p <= 1:
            raise UserError(
                f"--temperature {self.temperature}, --top-p {self.top_p}: give a temperature of at least 0 and a top-p "
                "above 0 and up to 1"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k {self.top_k} must be at least 1")


@dataclass(frozen=True)
class Request:
    """One answer to sample.

    Attributes:
        problem: the problem's id.
        sample: number of the sample.
        ids: the prompt's token ids.
        seed: of its draws: depends on the problem and the sample alone.
    """

    problem: int
    sample: int
    ids: tuple[int, ...]
    seed: str


@dataclass(frozen=True)
class Completion:
    """A sampled answer.

    Attributes:
        text: the answer, without special tokens.
        tokens: its length.
        finished: whether the model ended it.
    """

    text: str
    tokens: int
    finished: bool


def prompt_text(problem: Problem, tokenizer: Any, settings: SamplingSettings) -> str:
    """The prompt of a problem: by the chat template, or plain text where the tokenizer has none."""
    question = f"{problem.text}\n{settings.instruction}" if settings.instruction else problem.text
    system = SYSTEM_PROMPTS.get(settings.system_prompt, settings.system_prompt)
    if getattr(tokenizer, "chat_template", None):
        return chat_text(tokenizer, question, system, settings.think)
    return f"{system}\n\n{question}\n" if system else f"{question}\n"


def batches(problems: Sequence[Problem], tokenizer: Any, settings: SamplingSettings) -> list[list[Request]]:
    """All answers to sample, in batches of prompts of similar length. The same settings give the same batches."""
    requests = []
    for problem in problems:
        text = prompt_text(problem, tokenizer, settings)
        ids = tuple(tokenizer(text, add_special_tokens=not getattr(tokenizer, "chat_template", None))["input_ids"])
        for sample in range(settings.samples):
            seed = f"headwatch evaluate {settings.seed} {problem.id} {sample}"
            requests.append(Request(problem.id, sample, ids, seed))
    requests.sort(key=lambda request: (len(request.ids), request.problem, request.sample))
    size = settings.batch_size
    return [requests[first : first + size] for first in range(0, len(requests), size)]
