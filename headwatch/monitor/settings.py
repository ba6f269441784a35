"""Every option of the monitor, once: HeadWatchCallback's arguments, a recipe's `headwatch:` block, the manifest."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from headwatch.attribution.path import path_points
from headwatch.attribution.settings import ScoringSettings
from headwatch.circuits.circuit import CircuitSettings
from headwatch.errors import UserError
from headwatch.monitor.alerts import AlertSettings
from headwatch.probes import FAMILIES, Openers, ProbeSet
from headwatch.probes.families import OPENERS
from headwatch.probes.resolve import DEFAULT_FAMILIES, names_openers
from headwatch.sinks import check_report_to
from headwatch.stats import EvidenceSettings

Settings = TypeVar("Settings")

GROUPS: dict[str, type[Any]] = {
    "scoring": ScoringSettings,
    "circuit": CircuitSettings,
    "evidence": EvidenceSettings,
    "openers": Openers,
    "alerts": AlertSettings,
}
"""The options that are objects of their own."""


@dataclass(frozen=True)
class WatchSettings:
    """What the monitor watches, how often, and where it reports.

    Attributes:
        probes: a ProbeSet, a family name or several, a file, or None for the default families.
        every: optimizer steps between probes.
        n_pairs: pairs per family, when families are named.
        seed: of the generated pairs and of the bootstrap.
        scoring: how heads and edges are scored.
        circuit: the paper's circuit rule.
        evidence: the evidence rule.
        openers: what the family "openers" is made of and read by.
        alerts: the thresholds of the alerts.
        folder: where the record goes; None is {output_dir}/headwatch.
        report_to: where probes are shown: "auto", "none", or names out of wandb, trackio and tensorboard.
        wandb: "auto" (the W&B run that exists), "start" (or a new one) or "off".
        strict: raise when a probe fails instead of turning probing off.

    A group may be given as a mapping of its fields.

    Raises:
        UserError: a value makes no sense; the message names the option.
    """

    probes: Any = None
    every: int = 100
    n_pairs: int = 64
    seed: int = 0
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    openers: Openers = field(default_factory=Openers)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    folder: str | PathLike[str] | None = None
    report_to: str | Sequence[str] = "auto"
    wandb: str = "auto"
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("probes", "report_to"):  # a list of one name is that name
            value = getattr(self, name)
            if isinstance(value, list | tuple) and len(value) == 1:
                object.__setattr__(self, name, value[0])
        for name, kind in GROUPS.items():
            object.__setattr__(self, name, _group(name, kind, getattr(self, name)))
        for name, least in (("every", 1), ("n_pairs", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name}={value!r} must be a whole number of at least {least}")
        if not isinstance(self.strict, bool):
            raise UserError(f"strict={self.strict!r} must be True or False")
        _check_probes(self.probes)
        if names_openers(self.probes):
            path_points(self.scoring.alphas, self.scoring.steps, self.openers.metric)
        check_report_to(self.report_to, self.wandb)

    @property
    def sinks(self) -> tuple[str, ...] | None:
        """The sinks that are named; None for "auto"."""
        return check_report_to(self.report_to, self.wandb)

    @property
    def families(self) -> tuple[str, ...]:
        """The families that are named, the default ones included; () for a probe set or a file."""
        if self.probes is None:
            return DEFAULT_FAMILIES
        names = (self.probes,) if isinstance(self.probes, str) else self.probes
        known = isinstance(names, list | tuple) and all(name in (*FAMILIES, OPENERS) for name in names)
        return tuple(names) if known else ()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], prefix: str = "headwatch") -> "WatchSettings":
        """Settings from nested plain values, as YAML holds them.

        Args:
            options: {"every": 10, "evidence": {"q": 0.01}, ...}.
            prefix: names the mapping in messages: "headwatch.every=0 must be ...".

        Raises:
            UserError: an unknown option (with the nearest one), a value of the wrong kind, or one that makes no sense.
        """
        values = _typed(cls, options, prefix)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{prefix}.{error}") from error

    def to_options(self) -> dict[str, Any]:
        """The same as nested plain values, for the manifest and for a recipe."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "scoring":
                found[each.name] = {**vars(value), "metric": value.metric_name}
            elif each.name == "openers":
                found[each.name] = value.described()
            elif is_dataclass(value):
                found[each.name] = dict(vars(value))
            elif isinstance(value, ProbeSet):
                found[each.name] = list(value.family_names)
            elif isinstance(value, PathLike):
                found[each.name] = Path(value).name
            else:
                found[each.name] = list(value) if isinstance(value, tuple) else value
        return found


def recorded(settings: WatchSettings, metric: Any, has_openers: bool) -> dict[str, Any]:
    """The settings as the manifest holds them.

    Args:
        settings: the run's.
        metric: by family, once the families are known, where there are several.
        has_openers: whether the opener family is among them; without it nothing is recorded of it.
    """
    options = settings.to_options()
    options["scoring"]["metric"] = metric
    if not has_openers:
        options["openers"] = None
    return options


def _group(name: str, kind: type[Settings], value: Any) -> Settings:
    """A group's object, made from None or from a mapping where it is given so."""
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        values = _typed(kind, value, name)
        try:
            return kind(**values)
        except UserError as error:
            raise UserError(f"{name}.{error}") from error
    raise UserError(f"{name}={value!r}: give {kind.__name__}(...) or a mapping of its fields")


def _typed(kind: type[Any], options: Any, prefix: str) -> dict[str, Any]:
    """The values of a mapping, converted to the kinds of the fields' defaults; names are checked."""
    if not isinstance(options, Mapping):
        raise UserError(f"{prefix}={options!r}: write options as `name: value` below it")
    known = {each.name: each for each in fields(kind)}
    defaults = kind()
    values = {}
    for name, value in options.items():
        if name not in known:
            raise UserError(f"{prefix}.{name}: no such option; the nearest is {prefix}.{nearest(str(name), known)}")
        default = getattr(defaults, name)
        if is_dataclass(default):
            values[name] = _nested(type(default), value, f"{prefix}.{name}")
        else:
            values[name] = _converted(value, default, f"{prefix}.{name}")
    return values


def _nested(kind: type[Settings], value: Any, prefix: str) -> Settings:
    values = _typed(kind, {} if value is None else value, prefix)
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{prefix}.{error}") from error


def _converted(value: Any, default: Any, name: str) -> Any:
    """The value as the kind that the default is of; other defaults (None, tuples) take it as it is."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r} must be true or false")
    elif isinstance(default, int):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{name}={value!r} must be a whole number")
    elif isinstance(default, float):
        if isinstance(value, str):  # YAML reads 1e-3 as text
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{name}={value!r} must be a number")
    elif isinstance(default, str):
        if value is False:  # YAML reads a bare `off` or `no` as false
            value = "off" if name.endswith("wandb") else "no"
        if not isinstance(value, str) and not callable(value) and not name.endswith("report_to"):
            raise UserError(f"{name}={value!r} must be text")
    return tuple(value) if isinstance(value, list) and isinstance(default, tuple) else value


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """The known name that is most like a given one."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _check_probes(probes: Any) -> None:
    """UserError for family names that no tokenizer can make pairs of."""
    names = (*FAMILIES, OPENERS)
    if isinstance(probes, str) and probes not in names and not Path(probes).exists():
        close = difflib.get_close_matches(probes, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"probes={probes!r}: neither a family ({', '.join(names)}) nor a file that exists{hint}")
    if isinstance(probes, list | tuple):
        if not probes:
            raise UserError(f"probes=[]: name at least one of {', '.join(names)}")
        for name in probes:
            if name not in names:
                raise UserError(f"probes={list(probes)!r}: {name!r} is not a family; choose from {', '.join(names)}")
            if list(probes).count(name) > 1:
                raise UserError(f"probes={list(probes)!r}: name each family once")
    elif probes is not None and not isinstance(probes, str | PathLike | ProbeSet):
        raise UserError(f"probes={probes!r}: give a ProbeSet, family names ({', '.join(names)}), or a path")
