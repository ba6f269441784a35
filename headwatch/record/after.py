"""Results of commands that were run after a training, kept in its run folder: after/KIND.json, which the report shows.

Each file holds {"results": [...]} with one entry per model, named by "model"; a later result of the same model replaces
the earlier one. Kinds: circuits, roles, ablation, evaluation (of the commands of these names) and components (compare).
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.io.plain_json import plain
from headwatch.io.schema import problem
from headwatch.record.find_runs import find_runs
from headwatch.record.layout import AFTER
from headwatch.record.run_folder import RunFolder

Number = Annotated[float, Field(allow_inf_nan=False)]
Numbers = list[Number | None]
Head = Annotated[str, Field(pattern=r"^L\d{1,5}\.H\d{1,5}$")]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Size(_Open):
    size: Number
    edges: int
    heads: int
    faithfulness: Number | None
    lower: Number | None
    upper: Number | None
    random: Numbers


class _Edge(_Open):
    source: str = Field(pattern=r"^(input|a\d{1,5}\.h\d{1,5}|m\d{1,5})$")
    target: str = Field(pattern=r"^(logits|a\d{1,5}\.h\d{1,5}\.[qkv]|m\d{1,5})$")
    score: Number


class _Circuit(_Open):
    family: str
    edges: int
    real_edges: int
    heads: list[dict[str, str | Number | None]]
    strongest: list[_Edge] = []
    evaluated_on: int
    curve: list[_Size]
    cpr: Number | None
    cmd: Number | None
    random_cpr: Numbers
    random_cmd: Numbers


class _Circuits(_Open):
    model: str
    families: list[_Circuit]


class _Pattern(_Open):
    head: Head
    family: str
    tokens: list[str]
    rows: list[list[Number]]


class _Roles(_Open):
    model: str
    base: str | None = None
    prompts: int
    heads: list[dict[str, str | Number | None]]
    patterns: list[_Pattern] = []


class _Interval(_Open):
    value: Number
    low: Number
    high: Number


class _Comparison(_Open):
    difference: _Interval
    p_value: Number
    newly_right: list[int]
    newly_wrong: list[int]
    mcnemar_p: Number


class _Arm(_Open):
    arm: str
    group: str
    random: int | None
    heads: list[Head]
    pass1: _Interval
    against_none: _Comparison | None = None


class _AgainstRandom(_Open):
    arm: str
    sets: int
    random_mean: _Interval
    random_lowest: Number
    random_highest: Number
    difference: _Interval
    p_value: Number
    rank_p: Number


class _Suite(_Open):
    arms: Annotated[list[_Arm], Field(min_length=1)]
    against_random: list[_AgainstRandom]


class _Ablation(_Open):
    model: str
    groups: dict[str, list[Head]]
    suites: dict[str, _Suite]


class _Evaluated(_Open):
    problems: int
    samples: int
    passed: dict[str, _Interval] = Field(alias="pass")


class _Evaluation(_Open):
    model: str
    suites: dict[str, _Evaluated]


class _Component(_Open):
    before: Numbers
    now: Numbers


class _Components(_Open):
    model: str
    families: dict[str, dict[str, _Component]]


SCHEMAS: dict[str, TypeAdapter[Any]] = {
    "circuits": TypeAdapter(_Circuits),
    "roles": TypeAdapter(_Roles),
    "ablation": TypeAdapter(_Ablation),
    "evaluation": TypeAdapter(_Evaluation),
    "components": TypeAdapter(_Components),
}


def run_to_keep_in(folder: str | None) -> RunFolder | None:
    """The run of the option --run; None without it.

    Raises:
        UserError: there is no run, or more than one.
    """
    if folder is None:
        return None
    runs = find_runs(folder)
    if len(runs) > 1:
        raise UserError(f"--run {folder} holds {len(runs)} runs: give one of {', '.join(str(r.path) for r in runs)}")
    return runs[0]


def keep_result(run: RunFolder, kind: str, result: Mapping[str, Any]) -> Path:
    """Write a model's result into the run folder; returns the file.

    Args:
        run: the run folder.
        kind: a key of SCHEMAS.
        result: with the model's name as "model"; see SCHEMAS.

    Raises:
        ValueError: the result does not have the form of its kind.
    """
    value = plain(result)
    if (wrong := problem(SCHEMAS[kind], value)) is not None:
        raise ValueError(f"{kind}: {wrong}")
    path = _path(run, kind)
    path.parent.mkdir(exist_ok=True)
    others = [each for each in read_results(run, kind) if each["model"] != value["model"]]
    text = json.dumps({"results": [*others, value]}, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())
    return path


def read_results(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    """The results of a kind, one per model; invalid ones are left out with a warning."""
    path = _path(run, kind)
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        results = found["results"] if isinstance(found, dict) else None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        warnings.warn(f"{path} cannot be read ({error}); it is left out", stacklevel=2)
        return []
    kept = []
    for each in results if isinstance(results, list) else [results]:
        each = plain(each)
        if (wrong := problem(SCHEMAS[kind], each)) is None:
            kept.append(each)
        else:
            warnings.warn(f"{path}: {wrong}; this result is left out", stacklevel=2)
    return kept


def heads_with_events(run: RunFolder) -> list[tuple[int, int]]:
    """The heads with an event by the evidence rule, the latest first."""
    events = [event for event in run.events() if event.rule == "evidence"]
    return list(dict.fromkeys((event.layer, event.head) for event in reversed(events)))


def _path(run: RunFolder, kind: str) -> Path:
    return run.path / AFTER / f"{kind}.json"
