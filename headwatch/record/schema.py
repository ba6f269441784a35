"""What the JSON files of a run folder may contain. Keys that are not named here may hold anything."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model, model_validator

from headwatch.io.jsonl import Row
from headwatch.io.schema import problem
from headwatch.lives.events import EVENT_KINDS, STATUSES
from headwatch.stats import EvidenceSettings

Count = Annotated[int, Field(ge=0, le=1_000_000)]
Size = Annotated[int, Field(ge=1, le=100_000)]
Step = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Model(_Open):
    n_layers: Size
    n_heads: Size
    name: str | None = None
    type: str | None = None
    layers_with_heads: list[Count] | None = None

    @model_validator(mode="after")
    def _check_layers(self) -> "_Model":
        layers = self.layers_with_heads
        if layers is not None and (not layers or sorted(set(layers)) != layers or layers[-1] >= self.n_layers):
            raise ValueError("layers_with_heads must be increasing indices of layers")
        return self


class _Probes(_Open):
    fingerprint: str | None = None
    n_pairs: Count = 0
    families: list[str]
    pair_families: list[Count] | None = None
    tokenizer: str | None = None
    examples: dict[str, dict[str, str] | None] | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> "_Probes":
        pairs = self.pair_families
        if pairs is not None and (len(pairs) != self.n_pairs or max(pairs, default=0) >= max(len(self.families), 1)):
            raise ValueError("pair_families must name one of the families for each of the n_pairs pairs")
        return self


# The types of EvidenceSettings, and of the names that older records have.
_EVIDENCE: dict[str, Any] = {each.name: (each.type, each.default) for each in fields(EvidenceSettings)}
_Evidence: Any = create_model("_Evidence", __base__=_Open, **_EVIDENCE, material=(Number, 0.0), at_work=(bool, True))


class _Scoring(_Open):
    metric: str | dict[str, str] | None = None


class _Settings(_Open):
    evidence: _Evidence | None = None
    scoring: _Scoring | None = None
    circuit: dict[str, Any] | None = None


class _Wandb(_Open):
    url: str | None = None
    id: str | None = None


class _Manifest(_Open):
    format: int
    model: _Model
    probes: _Probes
    settings: _Settings | None = None
    status: str | None = None
    name: str | None = None
    trainer: str | None = None
    created: str | None = None
    headwatch_version: str | None = None
    versions: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    wandb: _Wandb | None = None


class _Logged(BaseModel):
    """A row of scalars.jsonl or training.jsonl: numbers, texts and what was not finite, by name."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Number | int | str | bool | list[Number] | None]
    step: Step


class _Event(_Open):
    step: Step
    seen: Step = 0
    settled_at: Step | None = None
    family: str
    layer: Count
    head: Count
    kind: str = Field(pattern=f"^({'|'.join(EVENT_KINDS)})$")
    status: str = Field("confirmed", pattern=f"^({'|'.join(STATUSES)})$")
    rule: str = "evidence"
    share_before: Number | None
    share_now: Number | None
    p_value: Number | None = None
    q_value: Number | None = None
    stability: Number | None = None
    difference: Number | None = None
    lower: Number | None = None
    upper: Number | None = None
    level: Number | None = None
    raw_before: Number | None = None
    raw_now: Number | None = None
    raw_p: Number | None = None
    patched_before: Number | None = None
    patched_now: Number | None = None
    patched_p: Number | None = None
    patching: str | None = None


class _Alert(_Open):
    step: Step
    kind: str | None = None
    family: str | None = None
    text: str | None = None
    level: str | None = None


_MANIFEST: TypeAdapter[Any] = TypeAdapter(_Manifest)
_LOGGED: TypeAdapter[Any] = TypeAdapter(_Logged)
_ROWS: dict[str, TypeAdapter[Any]] = {
    "scalars.jsonl": _LOGGED,
    "training.jsonl": _LOGGED,
    "events.jsonl": TypeAdapter(_Event),
    "alerts.jsonl": TypeAdapter(_Alert),
}


def manifest_problem(manifest: Any) -> str | None:
    """What is wrong with a manifest, in one line; None if it is valid."""
    return problem(_MANIFEST, manifest)


def row_problem(file_name: str, row: Row) -> str | None:
    """What is wrong with a row of one of the logs, in one line; None if it is valid."""
    return problem(_ROWS[file_name], row)
