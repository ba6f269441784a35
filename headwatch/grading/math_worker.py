"""A child process that makes one comparison per line with math-verify. Started by headwatch.grading.math_grader.

Reads JSON lines {"id": number, "gold": [texts], "answer": one expression} on standard input and writes {"id": the same,
"grade": 1.0, 0.0, or null if no gold text can be parsed}. It is run by its path and imports nothing of headwatch, to
start fast.
"""

import contextlib
import json
import logging
import sys
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MEMORY_LIMIT = 4 * 2**30  # bytes of address space; a power tower ends in a MemoryError of this process


def grade(gold: list[str], answer: str) -> float | None:
    """Compare `answer` with the first gold text that can be parsed.

    `answer` is one whole expression (headwatch/grading/answers.py) and is never searched for a value. Gold texts come
    from the dataset and may be worked solutions, whose last box counts.

    Returns:
        1.0 if equal, else 0.0; None if no gold text can be parsed.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    # The parent process sets the time limit.
    def read(text: str, *kinds: Any, fallback: str = "first_match") -> list[Any]:
        return parse(
            text, extraction_config=kinds, extraction_mode="first_match", fallback_mode=fallback, parsing_timeout=None
        )

    latex = LatexExtractionConfig(
        boxed_match_priority=0, normalization_config=NormalizationConfig(units=False, malformed_operators=True)
    )
    truth = next(filter(None, (read(text, latex, ExprExtractionConfig()) for text in gold)), None)
    if truth is None:
        return None
    found = read(f"\\boxed{{{answer}}}", latex, fallback="no_fallback")
    return float(bool(found) and verify(truth, found, timeout_seconds=None))


def main() -> None:
    """Grade until standard input ends. An answer that causes an exception is graded as wrong."""
    for name in ("math_verify", "math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not supported on this system
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    replies, sys.stdout = sys.stdout, sys.stderr  # prints of libraries must not mix with replies
    import math_verify  # noqa: F401  # loaded before "ready", so that it does not count for a comparison

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            score = grade(task["gold"], task["answer"])
        except (Exception, RecursionError):
            score = 0.0
        print(json.dumps({"id": task["id"], "grade": score}), file=replies, flush=True)


if __name__ == "__main__":
    main()
