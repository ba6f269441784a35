"""A child process that grades one completion per line by math-verify. Started by headwatch.training.math_grader.

Reads {"id": number, "gold": [texts], "answer": one expression} as JSON on standard input and answers {"id": the same,
"grade": 1.0, 0.0, or null where no gold text can be parsed}. It imports nothing of headwatch: it starts fast and is run
by its path.
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

MEMORY_LIMIT = 4 * 2**30  # bytes of address space; a power tower then ends in MemoryError here, not in the trainer


def grade(gold: list[str], answer: str) -> float | None:
    """1.0 where `answer` equals the first gold text that can be parsed, 0.0 where not, None where none can be parsed.

    `answer` is one whole expression (headwatch/training/answers.py): it is parsed as a whole or not at all, never
    searched for a value. Gold texts are the data's own, and may be worked solutions: their last box counts.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    # Timeouts are the parent's: math-verify's own are signals, which only a main thread can set.
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
    """Answer until standard input ends. An answer that raises is wrong; the worker goes on."""
    for name in ("math_verify", "math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no such limit on this system
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing a library prints is taken for a reply
    import math_verify  # noqa: F401  # before the first reply: loading is not counted against a completion's time

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
