"""A child process that grades one completion per line with math-verify. Started by headwatch.training.math_grader.

Reads {"gold": [texts], "text": completion, "answer": its answer or ""} as JSON lines on standard input and writes 1.0,
0.0, or null if no gold text can be parsed. It is run by its path and imports nothing of headwatch, to start fast.
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


def grade(gold: list[str], text: str, answer: str) -> float | None:
    """Compare a completion's answer with the first parseable gold text; see MathGrader.grade.

    `answer` is parsed in any notation. If that fails, `text` is parsed as by open-r1's accuracy_reward (LaTeX after an
    anchor, a box first).
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def read(candidate: str, *kinds: Any) -> list[Any]:
        # The parent process sets the time limit.
        return parse(candidate, extraction_config=kinds, extraction_mode="first_match", parsing_timeout=None)

    anything = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    truth = next(filter(None, (read(candidate, *anything) for candidate in gold)), None)
    if truth is None:
        return None
    # Without dollar signs, \frac{1}{3} and (1, 2) are parsed whole only in a box; but in a box any prose parses.
    boxed = [f"\\boxed{{{answer}}}"]
    notations = [*boxed, answer] if answer[:1] in ("(", "[") else [answer] + boxed * ("\\" in answer)
    found = next(filter(None, (read(notation, *anything) for notation in notations if answer)), None)
    if found is None:
        strict = LatexExtractionConfig(
            normalization_config=NormalizationConfig(units=True),
            boxed_match_priority=0,
            try_extract_without_anchor=False,
        )
        found = read(text, strict)
    return float(verify(truth, found, timeout_seconds=None))


def main() -> None:
    """Grade until standard input ends. Any exception that a completion causes counts as a wrong answer."""
    for name in ("math_verify", "math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not supported on this system
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    replies, sys.stdout = sys.stdout, sys.stderr  # prints of libraries must not mix with replies
    import math_verify  # noqa: F401  # loaded before "ready", so that it does not count for a completion

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            score = grade(task["gold"], task["text"], task["answer"])
        except (Exception, RecursionError):
            score = 0.0
        print(json.dumps(score), file=replies, flush=True)


if __name__ == "__main__":
    main()
