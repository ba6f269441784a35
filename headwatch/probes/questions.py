"""Questions for the opener family, from data sets on the Hub or from .jsonl files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.tokenization import shorten

# The paper's AIME'24 (30 questions) and AMC (83): more questions than the default number of pairs.
DEFAULT_QUESTIONS = ("HuggingFaceH4/aime_2024", "AI-MO/aimo-validation-amc")
FIELDS = ("problem", "question")


def load_questions(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Read the questions of several sources.

    Args:
        sources: data sets on the Hub (offline, from its cache), or .jsonl files whose rows have a `problem` or a
            `question`.

    Returns:
        The distinct questions in order, and one line per row without a new question.

    Raises:
        UserError: a source cannot be read, or has no question.
    """
    found: dict[str, None] = {}
    refused: list[str] = []
    for source in sources:
        before = len(found)
        for where, row in _rows(source):
            value = next((row[name] for name in FIELDS if row.get(name)), None) if isinstance(row, dict) else None
            text = value.strip() if isinstance(value, str) else ""
            if not text:
                refused.append(f"{source}: {where}: no {' or '.join(FIELDS)} in {shorten(str(row), 80)}")
            elif text in found:
                refused.append(f"{source}: {where}: repeated question: {shorten(text, 80)}")
            else:
                found[text] = None
        if len(found) == before:
            why = f" ({refused[-1]})" if refused else ""
            raise UserError(f"questions {source}: no question in it{why}; its rows need a {' or a '.join(FIELDS)}")
    return list(found), refused


def _rows(source: str) -> Iterable[tuple[str, Any]]:
    """(position, row) of every row; the row of a line that is not JSON is its text."""
    path = Path(source).expanduser()
    if path.suffix != ".jsonl":
        if path.exists() or source.startswith(("/", ".", "~")):
            raise UserError(f"questions {source}: give a .jsonl file with a problem per line, or a data set on the Hub")
        return ((f"row {number}", row) for number, row in enumerate(_from_hub(source)))
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise UserError(f"questions {source}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"questions {source} cannot be read ({error}): give a .jsonl file in UTF-8") from error
    return ((f"line {number}", _parsed(line)) for number, line in enumerate(lines, start=1) if line.strip())


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _from_hub(name: str) -> Iterable[Any]:
    """The rows of a data set's only split."""
    try:
        from datasets import load_dataset

        splits: Any = load_dataset(name)
    except Exception as error:  # datasets and huggingface_hub raise many kinds, all of them about this name
        reason = shorten(str(error), 160) or type(error).__name__
        raise UserError(
            f"questions {name} could not be loaded from the Hub ({reason}); without a network, give a .jsonl file "
            "with a problem per line"
        ) from error
    if len(splits) != 1:
        raise UserError(
            f"questions {name}: its splits are {', '.join(map(str, splits)) or 'none'}, and it must have one: save the "
            "split that you need as a .jsonl file"
        )
    return next(iter(splits.values()))
