"""Rows for the recipes: loaded from the Hub or a local copy, brought to one shape, filtered, sampled and counted.

Four shapes are known, by their columns: GSM8K's (question, answer "... #### N"), OpenR1-Math-220k's (problem, solution,
answer, and for SFT messages or generations), and for GRPO, having answers alone, MultiArith's (input, target) and
SVAMP's (Body, Question, Answer). A file of your own with such columns is read the same.
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
from headwatch.probes.system_prompts import SYSTEM_PROMPTS

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
SHAPES = {("question",): "answer", ("problem",): "answer", ("input",): "target", ("Body", "Question"): "Answer"}
WORKED = ("answer", "solution", "messages", "generations")  # where a worked solution may stand, which SFT learns from
LEAST_CHUNK = 256  # rows read at a time while the sample is not complete

KEPT = "kept"
NO_ANSWER, LONG_PROMPT, LONG_ROW, NO_REASONING = (
    "no answer",
    "prompt over max_prompt_tokens",
    "conversation over max_length",
    "no complete reasoning",
)


@dataclass
class DataArguments:
    """Which rows to train on."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "a name on the Hub, a .jsonl/.json/.parquet/.csv file, or a folder with a copy"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset, such as main"})
    dataset_revision: str | None = field(default=None, metadata={"help": "commit or tag of the dataset on the Hub"})
    dataset_split: str = field(default="train", metadata={"help": "which split to train on"})
    n_problems: int | None = field(
        default=None, metadata={"help": "how many rows to draw after filtering; all of them if left out"}
    )
    sample_seed: int = field(default=42, metadata={"help": "of the draw"})
    max_prompt_tokens: int | None = field(
        default=None, metadata={"help": "leave out rows whose prompt, in the chat template, is longer (GRPO)"}
    )
    system_prompt: str = field(
        default="open-r1", metadata={"help": "open-r1 (the paper's), none, or the text of your own"}
    )


@dataclass(frozen=True)
class Prepared:
    """Rows ready for a trainer, and what became of the others.

    Attributes:
        rows: SFT: messages. GRPO: prompt (messages), answer, solution.
        counts: rows looked at, by what became of them: "kept" and the reasons to leave one out.
        available: rows of the split.
        complete: whether n_problems rows were found, or all were asked for.
    """

    rows: Dataset
    counts: dict[str, int]
    available: int
    complete: bool

    def summary(self) -> str:
        """One line: `6,667 rows of 93,733 (looked at 7,020: 300 prompt over max_prompt_tokens, 53 no answer)`."""
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(self.counts.items()) if reason != KEPT)
        looked = sum(self.counts.values())
        return f"{len(self.rows):,} rows of {self.available:,} (looked at {looked:,}: {dropped or 'none left out'})"


def load_rows(arguments: DataArguments) -> Dataset:
    """The split, as it is on the Hub (through the cache, which serves offline too) or in a local copy.

    UserError where there is none, with what to do.
    """
    name, split = arguments.dataset_name, arguments.dataset_split
    if not name:
        raise UserError("--dataset_name is missing: give a name on the Hub, or the path of a .jsonl file")
    path = Path(name).expanduser()
    try:
        if path.is_file():
            if path.suffix not in READERS:
                raise UserError(f"--dataset_name {name}: files are read as {', '.join(READERS)}, not {path.suffix!r}")
            return _load_file(path)
        if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            saved = load_from_disk(str(path))  # what Dataset.save_to_disk wrote
            return saved[split] if isinstance(saved, DatasetDict) else saved
        if (name.startswith(("/", ".", "~")) or path.suffix in READERS) and not path.is_dir():
            raise UserError(f"--dataset_name {name}: no such file or folder")
        # A folder of a dataset repository, or the Hub.
        return load_dataset(name, arguments.dataset_config, split=split, revision=arguments.dataset_revision)
    except UserError:
        raise
    except Exception as error:  # datasets and huggingface_hub raise many kinds, all of them about this name
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
    except Exception as error:  # the readers' own kinds; `datasets` says what was wrong in the cause
        said = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        said = "it holds no rows" if "no data" in said else said
        raise UserError(f"--dataset_name {path}: not read as {path.suffix}: {said}") from error


def prepare(
    rows: Dataset,
    arguments: DataArguments,
    tokenizer: Any,
    method: str,
    *,
    max_length: int | None = None,
) -> Prepared:
    """Draw, shape and filter rows for "sft" or "grpo".

    Rows are shuffled by sample_seed and looked at in that order until n_problems are kept, so that a larger sample
    contains a smaller one. max_length: leave out SFT conversations of more tokens, which would lose their answers.
    Every result is cached by `datasets`, under a name made of all that it depends on.

    Raises:
        UserError: unknown columns, no row kept, or an option that makes no sense.
    """
    wanted = arguments.n_problems
    if wanted is not None and wanted < 1:
        raise UserError(f"--n_problems {wanted} must be at least 1 (leave it out for all rows)")
    names = rows.column_names
    has = f"--dataset_name {arguments.dataset_name}: its columns are {', '.join(names)}"
    if not any({*problem, answer} <= set(names) for problem, answer in SHAPES.items()):
        raise UserError(
            f"{has}; rows need question and answer (as GSM8K) or problem and answer (as OpenR1-Math-220k); "
            "for GRPO input and target (as MultiArith) or Body, Question and Answer (as SVAMP) do as well"
        )
    if method == "sft" and not set(WORKED) & set(names):
        raise UserError(
            f"{has}: answers without worked solutions, and SFT learns from those; add a column solution, or take a "
            "GRPO recipe"
        )
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError("the tokenizer has no chat template: give --chat_template chatml, or the path of a .jinja file")
    needed = {column for problem, answer in SHAPES.items() for column in (*problem, answer)} | {"solution"}
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
    while start < total and (wanted is None or kept < wanted):
        missing = total - start if wanted is None else wanted - kept
        stop = min(total, start + max(LEAST_CHUNK, missing + missing // 8))
        looked = _shape_all(shuffled.select(range(start, stop)), tokenizer, options)
        fates = looked["fate"]
        good = [index for index, fate in enumerate(fates) if fate == KEPT]
        if wanted is not None and kept + len(good) >= wanted:  # what lies behind the last one was not needed
            good = good[: wanted - kept]
            fates = fates[: good[-1] + 1]
        counts.update(fates)
        parts.append(looked.select(good))
        kept, start = kept + len(good), stop
    if kept == 0:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts.items()) or "there were none"
        raise UserError(f"--dataset_name {arguments.dataset_name}: no row is left of {total:,} ({reasons})")
    found = concatenate_datasets(parts).remove_columns("fate")
    return Prepared(found, dict(counts), total, wanted is None or kept >= wanted)


def _shape_all(rows: Dataset, tokenizer: Any, options: dict[str, Any]) -> Dataset:
    # Named by hand: `datasets` would hash the tokenizer as it is pickled, which changes with its first use.
    identity = [
        *(rows._fingerprint, options, tokenizer.chat_template, len(tokenizer), tokenizer.special_tokens_map),
        *(hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(), SHAPE_VERSION),
    ]
    fingerprint = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
    return rows.map(
        shape,
        fn_kwargs={"tokenizer": tokenizer, **options},
        remove_columns=rows.column_names,
        new_fingerprint=fingerprint,
        desc="rows",
    )


SHAPE_VERSION = 2  # raise it when shape() changes what it makes: cached rows are then made anew


def shape(
    row: Mapping[str, Any],
    tokenizer: Any,
    method: str,
    system: str,
    max_prompt_tokens: int | None,
    max_length: int | None,
) -> dict[str, Any]:
    """One row as the trainer takes it, with its fate: "kept", or why it is left out."""
    problem, answer, solution = problem_of(row)
    prompt = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": problem})
    fate = KEPT if problem and answer else NO_ANSWER
    if method == "grpo":
        if fate == KEPT and max_prompt_tokens is not None and _tokens(tokenizer, prompt, True) > max_prompt_tokens:
            fate = LONG_PROMPT
        return {"prompt": prompt, "answer": answer, "solution": solution, "fate": fate}
    reply = reply_of(row, answer, solution)
    messages = [*prompt, {"role": "assistant", "content": reply}]
    if fate == KEPT and not reply:
        fate = NO_REASONING
    if fate == KEPT and max_length is not None and _tokens(tokenizer, messages, False) > max_length:
        fate = LONG_ROW
    return {"messages": messages, "fate": fate}


def problem_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(problem, final answer, worked solution) of a row of any of SHAPES; "" for what it lacks.

    GSM8K's answer "... #### 1,234" gives "1234", and the solution without its <<48/2=24>> annotations. SVAMP's Body and
    Question are joined as by Qwen2.5-Math's evaluation: with a full stop where the body lacks one.
    """
    problem, value = "", None
    for columns, column in SHAPES.items():
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


def reply_of(row: Mapping[str, Any], answer: str, solution: str) -> str:
    """What the assistant says in SFT: the row's own conversation or first generation, else its solution, laid out."""
    for message in row.get("messages") or []:
        if message["role"] == "assistant":
            return str(message["content"])
    if row.get("generations"):
        return str(row["generations"][0])
    return f"<think>\n{solution}\n</think>\n<answer>\n{answer}\n</answer>" if solution else ""


def _tokens(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> int:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
