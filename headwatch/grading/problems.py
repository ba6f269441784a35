"""Problem, answer and worked solution of a dataset row, by its columns."""

from collections.abc import Mapping
from typing import Any

FORMATS = {("question",): "answer", ("problem",): "answer", ("input",): "target", ("Body", "Question"): "Answer"}
"""Columns of the problem -> column of the answer: GSM8K, OpenR1-Math-220k and MATH-500, MultiArith, SVAMP."""


def problem_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Problem, final answer and worked solution of a row in any of the known FORMATS; "" for what is missing.

    GSM8K's answer "... #### 1,234" gives "1234"; its solution loses the <<48/2=24>> annotations. SVAMP's Body and
    Question are joined as in Qwen2.5-Math's evaluation, with a full stop if the body lacks one.
    """
    problem, value = "", None
    for columns, column in FORMATS.items():
        parts = [str(row[name]).strip() for name in columns if row.get(name)]
        if len(parts) == len(columns) and all(parts):
            *before, last = parts
            problem = " ".join([*(part.removesuffix(".") + "." for part in before), last])
            value = row.get(column)
            break
    answer = "" if value is None else str(value)
    solution = str(row.get("solution") or "").strip()
    if "####" in answer:
        solution, _, answer = answer.rpartition("####")
        answer = answer.strip().replace(",", "")
        while "<<" in solution and ">>" in solution[solution.index("<<") :]:
            start = solution.index("<<")
            solution = solution[:start] + solution[solution.index(">>", start) + 2 :]
    return problem, answer.strip(), solution.strip()
