"""Generated rows with the columns of GSM8K or OpenR1-Math-220k, for --smoke and for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headwatch.demo.sums import sample_sums
from headwatch.io.atomic import write_atomic


def write_rows(path: Path, like: str, n: int = 64, seed: int = 0) -> Path:
    """Write n additions as word problems to a .jsonl file; every eighth row lacks an answer or is far too long.

    Args:
        path: the file.
        like: name of a dataset; the columns are GSM8K's if it contains "gsm8k", else OpenR1-Math-220k's.
        n: number of rows.
        seed: seed of the numbers.
    """
    make = _gsm8k if "gsm8k" in like.lower() else _openr1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in make(n, seed)).encode())
    return path


def write_questions(path: Path, n: int = 16, seed: int = 1) -> Path:
    """Write n questions for the family "openers" to a .jsonl file, one `problem` per line."""
    lines = (f"Add {problem.a} pens and {problem.b} pens." for problem in sample_sums(np.random.default_rng(seed), n))
    path.write_text("".join(json.dumps({"problem": line}) + "\n" for line in lines), encoding="utf-8")
    return path


def _gsm8k(n: int, seed: int) -> Iterator[dict[str, Any]]:
    for index, (question, steps, answer) in enumerate(_problems(n, seed)):
        yield {"question": question, "answer": f"{steps}\n#### {'' if index % 16 == 7 else answer}"}


def _openr1(n: int, seed: int) -> Iterator[dict[str, Any]]:
    for index, (question, steps, answer) in enumerate(_problems(n, seed)):
        thought = f"<think>\n{steps}\n</think>\n\nThe total is \\boxed{{{answer}}}."
        yield {
            "problem": question,
            "solution": f"{steps} The total is \\boxed{{{answer}}}.",
            "answer": "" if index % 16 == 7 else answer,
            "source": "stand-in",
            "generations": [thought],
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": thought}],
        }


def _problems(n: int, seed: int) -> Iterator[tuple[str, str, str]]:
    for index, problem in enumerate(sample_sums(np.random.default_rng(seed), n)):
        story = "The shop opened in the morning. " * (200 if index % 16 == 15 else 1)
        question = f"{story}It sold {problem.a} pens, and {problem.b} more later. How many were sold?"
        yield question, problem.worked.split(".", 1)[0].strip() + ".", problem.answer
