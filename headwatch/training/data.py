"""Datasets for the recipes: load from the Hub or a local copy, convert, filter, sample and count rows.

Four formats are recognised by their columns: GSM8K's (question, answer "... #### N"), OpenR1-Math-220k's (problem,
solution, answer, and for SFT messages or generations), and, for GRPO only, MultiArith's (input, target) and SVAMP's
(Body, Question, Answer). Files with the same columns are read the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk

from headwatch.errors import UserError
from headwatch.grading.problems import FORMATS, problem_of
from headwatch.probes.system_prompts import SYSTEM_PROMPTS

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
WORKED = ("answer", "solution", "messages", "generations")  # columns that may contain a worked solution, for SFT
MIN_CHUNK = 256  # rows read at a time until the sample is complete

KEPT = "kept"
NO_ANSWER, LONG_PROMPT, LONG_ROW, NO_REASONING = (
    "no answer",
    "prompt over max_prompt_tokens",
    "conversation over max_length",
    "no complete reasoning",
)


@dataclass
class DataArguments:
    """Options that choose the rows to train on."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "name on the Hub, a .jsonl/.json/.parquet/.csv file, or a folder with a copy"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset, such as main"})
    dataset_revision: str | None = field(default=None, metadata={"help": "commit or tag of the dataset on the Hub"})
    dataset_split: str = field(default="train", metadata={"help": "which split to train on"})
    n_problems: int | None = field(default=None, metadata={"help": "number of rows to draw after filtering (all)"})
    sample_seed: int = field(default=42, metadata={"help": "seed of the draw"})
    max_prompt_tokens: int | None = field(
        default=None, metadata={"help": "skip rows with a longer prompt, chat template included (GRPO)"}
    )
    system_prompt: str = field(default="open-r1", metadata={"help": "open-r1 (the paper's), none, or your own text"})


@dataclass(frozen=True)
class PreparedRows:
    """Rows for a trainer, and counts of the skipped ones.

    Attributes:
        rows: SFT: messages. GRPO: prompt (messages), answer, solution.
        counts: number of rows read, by outcome: "kept" or the reason for skipping.
        available: number of rows in the split.
        complete: whether n_problems rows were found; True if all rows were requested.
    """

    rows: Dataset
    counts: dict[str, int]
    available: int
    complete: bool

    @property
    def skipped(self) -> str:
        """Counts of the skipped rows by reason: `300 prompt over max_prompt_tokens, 53 no answer`, or `none`."""
        skipped = (f"{n:,} {outcome}" for outcome, n in sorted(self.counts.items()) if outcome != KEPT)
        return ", ".join(skipped) or "none"

    def summary(self) -> str:
        """One line: `6,667 rows of 93,733 (7,020 read, skipped: 300 prompt over max_prompt_tokens, 53 no answer)`."""
        read = sum(self.counts.values())
        return f"{len(self.rows):,} rows of {self.available:,} ({read:,} read, skipped: {self.skipped})"


def load_rows(arguments: DataArguments) -> Dataset:
    """Load a split from the Hub (or its cache, when offline) or from a local copy.

    Raises:
        UserError: the dataset cannot be loaded; with what to do.
    """
    name, split = arguments.dataset_name, arguments.dataset_split
    if not name:
        raise UserError("--dataset_name is missing: give a name on the Hub, or the path of a .jsonl file")
    path = Path(name).expanduser()
    try:
        if path.is_file():
            if path.suffix not in READERS:
                raise UserError(f"--dataset_name {name}: the file must be {', '.join(READERS)}, not {path.suffix!r}")
            return _load_file(path)
        if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            saved = load_from_disk(str(path))  # written by Dataset.save_to_disk
            return saved[split] if isinstance(saved, DatasetDict) else saved
        if (name.startswith(("/", ".", "~")) or path.suffix in READERS) and not path.is_dir():
            raise UserError(f"--dataset_name {name}: no such file or folder")
        # A folder of a dataset repository, or the Hub.
        return load_dataset(name, arguments.dataset_config, split=split, revision=arguments.dataset_revision)
    except UserError:
        raise
    except Exception as error:  # datasets and huggingface_hub raise many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--dataset_name {name} (config {arguments.dataset_config}, split {split}) could not be loaded: {reason}; "
            "without a network, give the path of a local copy"
        ) from error


def _load_file(path: Path) -> Dataset:
    if not path.stat().st_size:
        raise UserError(f"--dataset_name {path}: the file is empty")
    try:
        return load_dataset(READERS[path.suffix], data_files=str(path), split="train")
    except Exception as error:  # each reader raises its own types; the cause has the reason
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        reason = "it holds no rows" if "no data" in reason else reason
        raise UserError(f"--dataset_name {path}: could not be read as {path.suffix}: {reason}") from error


def prepare(
    rows: Dataset,
    arguments: DataArguments,
    tokenizer: Any,
    method: str,
    *,
    max_length: int | None = None,
) -> PreparedRows:
    """Sample, convert and filter rows.

    Rows are shuffled by sample_seed and read in that order until n_problems are kept, so that a larger sample contains
    a smaller one. `datasets` caches the result under a hash of all that it depends on.

    Args:
        rows: the split.
        arguments: the sample and the filters.
        tokenizer: used with its chat template, to count tokens.
        method: "sft" or "grpo".
        max_length: skip SFT conversations of more tokens, whose answers would be truncated.

    Raises:
        UserError: unknown columns, no row kept, or an invalid option.
    """
    n_problems = arguments.n_problems
    if n_problems is not None and n_problems < 1:
        raise UserError(f"--n_problems {n_problems} must be at least 1 (omit it for all rows)")
    names = rows.column_names
    has = f"--dataset_name {arguments.dataset_name}: its columns are {', '.join(names)}"
    if not any({*problem, answer} <= set(names) for problem, answer in FORMATS.items()):
        raise UserError(
            f"{has}; rows need question and answer (GSM8K) or problem and answer (OpenR1-Math-220k); "
            "for GRPO also input and target (MultiArith) or Body, Question and Answer (SVAMP)"
        )
    if method == "sft" and not set(WORKED) & set(names):
        raise UserError(
            f"{has}: answers without worked solutions, which SFT needs; add a column solution, or use a GRPO recipe"
        )
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError("the tokenizer has no chat template: give --chat_template chatml, or the path of a .jinja file")
    needed = {column for problem, answer in FORMATS.items() for column in (*problem, answer)} | {"solution"}
    needed |= {"messages", "generations"} if method == "sft" else set()
    rows = rows.remove_columns([name for name in names if name not in needed])
    shuffled = rows.shuffle(seed=arguments.sample_seed)
    system = SYSTEM_PROMPTS.get(arguments.system_prompt, arguments.system_prompt)
    options: dict[str, Any] = {
        "method": method,
        "system": system,
        "max_prompt_tokens": arguments.max_prompt_tokens,
        "max_length": max_length if method == "sft" else None,
    }
    total = len(shuffled)
    counts: Counter[str] = Counter()
    parts: list[Dataset] = []
    kept = start = 0
    while start < total and (n_problems is None or kept < n_problems):
        missing = total - start if n_problems is None else n_problems - kept
        stop = min(total, start + max(MIN_CHUNK, missing + missing // 8))
        chunk = _convert_all(shuffled.select(range(start, stop)), tokenizer, options)
        outcomes = chunk["outcome"]
        good = [index for index, outcome in enumerate(outcomes) if outcome == KEPT]
        if n_problems is not None and kept + len(good) >= n_problems:  # do not count rows after the last one kept
            good = good[: n_problems - kept]
            outcomes = outcomes[: good[-1] + 1]
        counts.update(outcomes)
        parts.append(chunk.select(good))
        kept, start = kept + len(good), stop
    if kept == 0:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts.items()) or "the split is empty"
        raise UserError(f"--dataset_name {arguments.dataset_name}: no row is left of {total:,} ({reasons})")
    found = concatenate_datasets(parts).remove_columns("outcome")
    return PreparedRows(found, dict(counts), total, n_problems is None or kept >= n_problems)


def _convert_all(rows: Dataset, tokenizer: Any, options: dict[str, Any]) -> Dataset:
    # `datasets` would hash the pickled tokenizer, which changes on its first use.
    identity = [
        *(rows._fingerprint, options, tokenizer.chat_template, len(tokenizer), tokenizer.special_tokens_map),
        *(hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(), CONVERT_VERSION),
    ]
    fingerprint = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
    return rows.map(
        convert,
        fn_kwargs={"tokenizer": tokenizer, **options},
        remove_columns=rows.column_names,
        new_fingerprint=fingerprint,
        desc="rows",
    )


CONVERT_VERSION = 3  # increase it when the result of convert() changes, to invalidate cached rows


def convert(
    row: Mapping[str, Any],
    tokenizer: Any,
    method: str,
    system: str,
    max_prompt_tokens: int | None,
    max_length: int | None,
) -> dict[str, Any]:
    """Convert a row to the trainer's format, with its outcome: "kept" or the reason for skipping it."""
    problem, answer, solution = problem_of(row)
    prompt = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": problem})
    outcome = KEPT if problem and answer else NO_ANSWER
    if method == "grpo":
        if outcome == KEPT and max_prompt_tokens is not None and _tokens(tokenizer, prompt, True) > max_prompt_tokens:
            outcome = LONG_PROMPT
        return {"prompt": prompt, "answer": answer, "solution": solution, "outcome": outcome}
    reply = reply_of(row, answer, solution)
    messages = [*prompt, {"role": "assistant", "content": reply}]
    if outcome == KEPT and not reply:
        outcome = NO_REASONING
    if outcome == KEPT and max_length is not None and _tokens(tokenizer, messages, False) > max_length:
        outcome = LONG_ROW
    return {"messages": messages, "outcome": outcome}


def reply_of(row: Mapping[str, Any], answer: str, solution: str) -> str:
    """The assistant's message for SFT: the row's own message or generation, else its solution in open-r1's format."""
    for message in row.get("messages") or []:
        if message["role"] == "assistant":
            return str(message["content"])
    if row.get("generations"):
        return str(row["generations"][0])
    return f"<think>\n{solution}\n</think>\n<answer>\n{answer}\n</answer>" if solution else ""


def _tokens(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> int:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
