"""Tasks of lm-evaluation-harness (GPQA, TriviaQA, retention suites), on a model that is loaded."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from headwatch.errors import UserError
from headwatch.evaluation.run import Result
from headwatch.io.atomic import write_atomic
from headwatch.io.plain_json import plain

PREFIX = "lm_eval:"
RESULT = "harness.json"


@dataclass(frozen=True)
class TaskResult:
    """What a model scored on a task, or on a group of tasks.

    Attributes:
        numbers: task -> what the harness reports of it, metric by metric.
        documents: "task metric" -> id of each document -> 1 right, 0 wrong; only for metrics with these values alone.
    """

    numbers: dict[str, Any]
    documents: dict[str, dict[int, float]]

    def results(self) -> dict[str, Result]:
        """The metrics of `documents` as results with one sample per document, for paired comparisons."""
        found = {}
        for name, grades in self.documents.items():
            ids = sorted(grades)
            found[name] = Result(tuple(ids), np.array([[grades[each]] for each in ids]), None, None, 0)
        return found


def check_harness(task: str) -> None:
    """Raise UserError where lm-evaluation-harness is not installed, or no task is named."""
    if not task:
        raise UserError(f"--suite {PREFIX}: name a task, such as {PREFIX}gpqa_diamond_zeroshot")
    if find_spec("lm_eval") is None:
        raise UserError(
            f"--suite {PREFIX}{task} needs lm-evaluation-harness, which is not installed: pip install 'lm_eval[hf]'"
        )


def run_task(task: str, model: Any, tokenizer: Any, batch_size: int, limit: int | None, seed: int) -> TaskResult:
    """Run one task; hooks on the model stay in force.

    Args:
        task: a task or group of lm-evaluation-harness.
        model: the model.
        tokenizer: its tokenizer.
        batch_size: of the harness.
        limit: the first so many documents; None takes all.
        seed: of the harness.

    Raises:
        UserError: the harness is not installed, or does not run the task.
    """
    check_harness(task)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = simple_evaluate(
            model=wrapped,
            tasks=[task],
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            log_samples=True,
            bootstrap_iters=1000,
        )
    except Exception as error:  # unknown task, gated data set, no network: each raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--suite {PREFIX}{task}: lm-evaluation-harness failed: {reason}") from error
    found = found or {}
    return TaskResult(plain(dict(found.get("results", {}))), _graded(found.get("samples", {})))


def kept_task(folder: Path, settings: Mapping[str, Any]) -> TaskResult | None:
    """The result that `keep_task` wrote into the folder with the same settings; None if there is none."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if found["settings"] != plain(dict(settings)):
            return None
        documents = {name: {int(key): value for key, value in own.items()} for name, own in found["documents"].items()}
        return TaskResult(found["numbers"], documents)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep_task(folder: Path, settings: Mapping[str, Any], result: TaskResult) -> None:
    """Write a result, so that a command that is run again does not repeat the task."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULT, json.dumps(plain({"settings": dict(settings), **asdict(result)})).encode())


def _graded(samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, dict[int, float]]:
    """See `TaskResult.documents`; samples: of `simple_evaluate`. Each filter of a task has its own metrics."""
    values: dict[str, dict[int, float]] = {}
    unusable = set()
    for task, rows in samples.items():
        for row in rows:
            of_filter = "" if row.get("filter", "none") == "none" else f" ({row['filter']})"
            for metric in row.get("metrics", ()):
                name, value = f"{task} {metric}{of_filter}", row.get(metric)
                known = values.setdefault(name, {})
                is_grade = isinstance(value, (bool, int, float, np.number)) and value in (0, 1)
                if not is_grade or row["doc_id"] in known:
                    unusable.add(name)
                else:
                    known[int(row["doc_id"])] = float(bool(value))
    return {name: grades for name, grades in values.items() if name not in unusable}
