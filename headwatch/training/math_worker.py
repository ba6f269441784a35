"""A child process that grades one completion per line by math-verify. Started by headwatch.training.math_grader.

Reads {"gold": [texts], "text": completion, "answer": its answer or ""} as JSON on standard input and answers 1.0, 0.0,
or null where no gold text can be parsed. It imports nothing of headwatch: it starts fast and is run by its path.
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


def grade(gold: list[str], text: str, answer: str) -> float | None:
    """1.0 where the completion's answer equals the gold one, 0.0 where not, None where no gold text can be parsed.

    The first of these that parses decides: `answer`, the part of the completion that is nothing but its answer, read as
    any notation; then the whole `text`, read as open-r1's accuracy_reward does (LaTeX behind an anchor, a box first).
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def read(candidate: str, *kinds: Any) -> list[Any]:
        # Timeouts are the parent's: math-verify's own are signals, which only a main thread can set.
        return parse(candidate, extraction_config=kinds, extraction_mode="first_match", parsing_timeout=None)

    anything = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    truth = next(filter(None, (read(candidate, *anything) for candidate in gold)), None)
    if truth is None:
        return None
    # Without dollars \frac{1}{3} and (1, 2) are read whole only in a box; and a box takes any prose for an answer.
    boxed = [f"\\boxed{{{answer}}}"]
    notations = [*boxed, answer] if answer[:1] in ("(", "[") else [answer] + boxed * ("\\" in answer)
    said = next(filter(None, (read(notation, *anything) for notation in notations if answer)), None)
    if said is None:
        strict = LatexExtractionConfig(
            normalization_config=NormalizationConfig(units=True),
            boxed_match_priority=0,
            try_extract_without_anchor=False,
        )
        said = read(text, strict)
    return float(verify(truth, said, timeout_seconds=None))


def main() -> None:
    """Answer until standard input ends. Whatever a completion provokes is a wrong answer, not the worker's end."""
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
            score = grade(task["gold"], task["text"], task["answer"])
        except (Exception, RecursionError):
            score = 0.0
        print(json.dumps(score), file=replies, flush=True)


if __name__ == "__main__":
    main()
