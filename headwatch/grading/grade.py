"""Grade the answers of completions: 1 right, 0 wrong, None where the right answer cannot be parsed."""

from collections.abc import Sequence

from headwatch.grading.answers import expression, number, separators
from headwatch.grading.math_grader import MathGrader, Task


def grade_answers(
    found: Sequence[str],
    answer: Sequence[str],
    solution: Sequence[str] | None,
    grader: MathGrader,
    *,
    answer_first: bool = True,
) -> list[float | None]:
    r"""Grade answers that were extracted from completions.

    Args:
        found: the extracted answers, "" where there is none (`answers.final_answer`).
        answer: final answers, such as `72` or `\frac{1}{3}`.
        solution: worked solutions, read if an answer cannot be parsed.
        grader: compares what is neither equal as a number nor as text.
        answer_first: False compares with `solution` first, and always by the grader.

    Returns:
        One grade per answer.
    """
    solutions: Sequence[str | None] = solution if solution is not None else [None] * len(answer)
    grades: list[float | None] = []
    undecided: dict[int, Task] = {}
    for index, (text, right, worked) in enumerate(zip(found, answer, solutions, strict=True)):
        given, gold = expression(text), expression(right)
        value, gold_value = number(given), number(gold)
        gold_texts = _gold_texts(gold or right, worked, answer_first=answer_first)
        if value is not None and gold_value is not None and answer_first:
            grades.append(float(value == gold_value))
        elif given and answer_first and given.replace(" ", "") == gold.replace(" ", ""):
            grades.append(1.0)
        elif not gold_texts:
            grades.append(None)
        elif not given or (gold and separators(given) != separators(gold)):
            grades.append(0.0)
            if not gold:  # None instead of 0 if the gold answer cannot be parsed either
                undecided[index] = Task(tuple(gold_texts), "0")
        else:
            grades.append(0.0)
            undecided[index] = Task(tuple(gold_texts), given)
    for index, grade in zip(undecided, grader.grade(list(undecided.values())), strict=True):
        grades[index] = None if grade is None else grade if expression(found[index]) else 0.0
    return grades


def _gold_texts(answer: str, solution: str | None, *, answer_first: bool) -> list[str]:
    boxed = [f"\\boxed{{{answer}}}"] if answer.strip() else []
    worked = [solution] if solution else []
    return boxed + worked if answer_first else worked + boxed
