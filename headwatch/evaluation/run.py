"""Evaluate one model on one benchmark: sample, grade, write, summarise."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from headwatch.errors import UserError
from headwatch.evaluation.benchmarks import Problem, fingerprint
from headwatch.evaluation.pass_at_k import Interval, bootstrap_mean, pass_at_k, success_at_k
from headwatch.evaluation.samples import SampleFile, grade_matrix
from headwatch.evaluation.sampling import Completion, Request, SamplingSettings, batches
from headwatch.grading.answers import final_answer
from headwatch.grading.grade import grade_answers
from headwatch.grading.math_grader import MathGrader


class Engine(Protocol):
    """Samples answers."""

    name: str

    def sample(self, requests: Sequence[Request]) -> list[Completion]:
        """One answer per request."""


@dataclass(frozen=True)
class Result:
    """What a model scored on a benchmark.

    Attributes:
        problems: ids of the graded problems, [P].
        grades: [P, n], 1 right and 0 wrong.
        unfinished: share of answers that reached the longest length; None where unknown (lm-evaluation-harness).
        tokens: mean length of an answer; None where it is not known.
        ungraded: problems whose right answer cannot be parsed; they count nowhere.
    """

    problems: tuple[int, ...]
    grades: NDArray[np.float64]
    unfinished: float | None
    tokens: float | None
    ungraded: int

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of right answers of each problem, [P]."""
        return np.asarray(self.grades.mean(axis=1))

    def pass_at(self, k: int) -> Interval:
        """pass@k over problems, with its interval."""
        n = self.grades.shape[1]
        return bootstrap_mean(pass_at_k(n, self.grades.sum(axis=1), k))

    def summary(self) -> dict[str, Any]:
        """All numbers, as plain values."""
        n = self.grades.shape[1]
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= n]
        return {
            "problems": len(self.problems),
            "samples": n,
            "pass": {str(k): asdict(self.pass_at(k)) for k in ks},
            "success": {str(k): asdict(bootstrap_mean(success_at_k(self.grades, k))) for k in ks},
            "unfinished": self.unfinished,
            "tokens": self.tokens,
            "ungraded": self.ungraded,
        }


def evaluate(
    make_engine: Callable[[], Engine],
    tokenizer: Any,
    problems: Sequence[Problem],
    settings: SamplingSettings,
    folder: Path,
    about: dict[str, Any],
    grader: MathGrader,
    label: str = "",
) -> Result:
    """Sample and grade what is not on disk yet; returns the result.

    Args:
        make_engine: gives the engine; called only if something is missing.
        tokenizer: of the prompts.
        problems: the benchmark.
        settings: of the sampling.
        folder: where settings.json and samples.jsonl are.
        about: what else defines the answers (model, heads), for settings.json.
        grader: compares answers.
        label: of the progress bar.

    Raises:
        UserError: the folder holds answers of other settings, or no problem can be graded.
    """
    work = batches(problems, tokenizer, settings)
    defines = {**about, "problems": fingerprint(problems), **asdict(settings)}
    file = SampleFile(folder, defines, [len(batch) for batch in work])
    missing = sorted(set(range(len(work))) - file.done())
    by_id = {problem.id: problem for problem in problems}
    if missing:
        engine = make_engine()
        for index in tqdm(missing, desc=label or "answers", unit="batch", disable=None):
            file.append(index, _graded(work[index], engine.sample(work[index]), by_id, grader))
    return result_of(file.rows())


def result_of(rows: Sequence[dict[str, Any]]) -> Result:
    """The result of sampled answers, sorted by problem and sample."""
    ids, grades = grade_matrix(rows)
    if not ids:
        raise UserError("no problem of this benchmark has an answer that can be parsed")
    return Result(
        tuple(ids),
        grades,
        unfinished=float(np.mean([not row["finished"] for row in rows])),
        tokens=float(np.mean([row["tokens"] for row in rows])),
        ungraded=len({row["problem"] for row in rows}) - len(ids),
    )


def _graded(
    requests: Sequence[Request], completions: Sequence[Completion], problems: dict[int, Problem], grader: MathGrader
) -> list[dict[str, Any]]:
    found = [final_answer(completion.text) for completion in completions]
    asked = [problems[request.problem] for request in requests]
    grades = grade_answers(found, [p.answer for p in asked], [p.solution for p in asked], grader)
    return [
        {
            "problem": request.problem,
            "sample": request.sample,
            "correct": None if grade is None else int(grade),
            "answer": answer,
            "finished": completion.finished,
            "tokens": completion.tokens,
            "text": completion.text,
        }
        for request, completion, answer, grade in zip(requests, completions, found, grades, strict=True)
    ]
