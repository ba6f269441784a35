"""Problems with an answer: the benchmarks of the paper from the Hub, or a .jsonl file."""

import difflib
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.grading.problems import problem_of


@dataclass(frozen=True)
class Source:
    """Where a benchmark is on the Hub, and how many problems it has."""

    dataset: str
    config: str | None
    split: str
    problems: int


SUITES = {
    "gsm8k": Source("openai/gsm8k", "main", "test", 1319),
    "math500": Source("HuggingFaceH4/MATH-500", None, "test", 500),
    "aime24": Source("HuggingFaceH4/aime_2024", None, "train", 30),
    "aime25": Source("math-ai/aime25", None, "test", 30),
    "amc": Source("AI-MO/aimo-validation-amc", None, "train", 83),
}


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: its place in the benchmark.
        text: the question.
        answer: the right answer.
        solution: a worked solution, read if the answer cannot be parsed; "" if there is none.
    """

    id: int
    text: str
    answer: str
    solution: str = ""


def check_suite(name: str) -> None:
    """Check the name of a benchmark, without reading it.

    Raises:
        UserError: it is neither a benchmark nor a .jsonl file that exists.
    """
    if name in SUITES:
        return
    path = Path(name).expanduser()
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise UserError(f"--suite {name}: no such file")
        return
    close = difflib.get_close_matches(name, SUITES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"use {', '.join(SUITES)}, a .jsonl file or lm_eval:TASK"
    raise UserError(f"--suite {name} is unknown: {hint}")


def suite_name(name: str) -> str:
    """The name under which results are stored: the benchmark's, or the file's without its folder."""
    return name if name in SUITES else Path(name).stem


def count_problems(name: str, n_problems: int | None = None) -> int:
    """The number of problems, without loading a benchmark of the Hub."""
    check_suite(name)
    n = SUITES[name].problems if name in SUITES else sum(1 for _ in _lines(Path(name).expanduser()))
    return n if n_problems is None else min(n, n_problems)


def load_problems(name: str, n_problems: int | None = None, seed: int = 0) -> list[Problem]:
    """The problems of a benchmark, in its order.

    Args:
        name: a benchmark (`SUITES`), or a .jsonl file whose rows have a problem and an answer (or the columns of
            GSM8K, MultiArith or SVAMP).
        n_problems: draw so many of them; None takes all.
        seed: of that draw.

    Raises:
        UserError: it cannot be read, or a row has no problem or no answer.
    """
    check_suite(name)
    rows = _from_hub(name) if name in SUITES else _from_file(Path(name).expanduser())
    found: list[Problem] = []
    for index, row in enumerate(rows):
        text, answer, solution = problem_of(row)
        if not text or not answer:
            what = "problem" if not text else "answer"
            raise UserError(f"--suite {name}: row {index + 1} has no {what}; its columns are {', '.join(row)}")
        found.append(Problem(index, text, _plain(answer), solution))
    if not found:
        raise UserError(f"--suite {name}: no problem in it")
    if n_problems is not None and n_problems < len(found):
        chosen = sorted(random.Random(f"headwatch problems {seed}").sample(range(len(found)), n_problems))
        found = [found[index] for index in chosen]
    return found


def fingerprint(problems: Sequence[Problem]) -> str:
    """First 16 hex digits of the SHA-256 of the problems and answers."""
    content = json.dumps([(problem.id, problem.text, problem.answer) for problem in problems])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _plain(answer: str) -> str:
    """Whole numbers that a file has as floats ("27.0") without the point."""
    return answer.removesuffix(".0") if answer.removesuffix(".0").lstrip("-").isdecimal() else answer


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--suite {path} cannot be read ({error}): give a .jsonl file in UTF-8") from error
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _from_file(path: Path) -> Iterable[Mapping[str, Any]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"--suite {path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"--suite {path}, line {number}: not a JSON object")
        yield row


def _from_hub(name: str) -> Iterable[Mapping[str, Any]]:
    source = SUITES[name]
    try:
        from datasets import load_dataset

        rows: Any = load_dataset(source.dataset, source.config, split=source.split)
    except Exception as error:  # datasets and huggingface_hub raise many kinds: offline, gated, renamed
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--suite {name}: {source.dataset} could not be loaded from the Hub ({reason}); without a network or "
            "access, give a .jsonl file with a problem and an answer per line"
        ) from error
    return rows
