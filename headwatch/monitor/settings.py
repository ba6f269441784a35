"""WatchSettings: the options of HeadWatchCallback, of a recipe's `headwatch:` block and of the manifest."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from headwatch.analysis.event_patching import PATCHING
from headwatch.attribution.path import path_points
from headwatch.attribution.settings import ScoringSettings
from headwatch.circuits.circuit import CircuitSettings
from headwatch.errors import UserError
from headwatch.monitor.alerts import AlertSettings
from headwatch.monitor.nested_options import as_settings, read_settings
from headwatch.probes import FAMILIES, Openers, ProbeSet
from headwatch.probes.families import OPENERS
from headwatch.probes.resolve import names_openers
from headwatch.sinks import check_report_to
from headwatch.stats import EvidenceSettings

GROUPS: dict[str, type[Any]] = {
    "scoring": ScoringSettings,
    "circuit": CircuitSettings,
    "evidence": EvidenceSettings,
    "openers": Openers,
    "alerts": AlertSettings,
}
"""Options that are dataclasses themselves."""


@dataclass(frozen=True)
class WatchSettings:
    """What the monitor watches, how often, and where it reports.

    Attributes:
        probes: a ProbeSet, a family name or several, a file, or None (or "auto"): the built-in
            families with signal on the model, found by a look at a few pairs when training begins.
        every: optimizer steps between probes.
        max_overhead: largest time of a probe as a share of the training time since the last one; probes that would take
            longer are put off, in multiples of `every`. None does not limit it.
        n_pairs: pairs per family, when families are named.
        seed: seed of the generated pairs and of the bootstrap.
        scoring: how heads and edges are scored.
        circuit: the paper's circuit rule.
        evidence: the evidence rule.
        openers: how the pairs of the family "openers" are made and read.
        alerts: thresholds of the alerts.
        patching: exact patching of events: "events" (the heads of new events, at most at the cost of the scores, and
            the strongest heads at the base probe, at most at three times that), "all" (no limit) or "none".
        folder: the run folder; None is {output_dir}/headwatch.
        report_to: where probes are shown: "auto", "none", or names out of wandb, trackio and tensorboard.
        wandb: "auto" (the W&B run that exists), "start" (or a new one) or "off".
        strict: raise when a probe fails instead of turning probing off.

    A group may be given as a mapping of its fields.

    Raises:
        UserError: a value is not valid; the message starts with the option's name.
    """

    probes: ProbeSet | str | Sequence[str] | PathLike[str] | None = None
    every: int = 100
    max_overhead: float | None = None
    n_pairs: int = 64
    seed: int = 0
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    openers: Openers = field(default_factory=Openers)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    patching: str = "events"
    folder: str | PathLike[str] | None = None
    report_to: str | Sequence[str] = "auto"
    wandb: str = "auto"
    strict: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.probes, str) and self.probes == "auto":
            object.__setattr__(self, "probes", None)
        for name in ("probes", "report_to"):  # a list of one name is that name
            value = getattr(self, name)
            if isinstance(value, list | tuple) and len(value) == 1:
                object.__setattr__(self, name, value[0])
        for name, kind in GROUPS.items():
            object.__setattr__(self, name, as_settings(kind, getattr(self, name), name))
        for name, least in (("every", 1), ("n_pairs", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name}={value!r} must be a whole number of at least {least}")
        share = self.max_overhead
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise UserError(f"max_overhead={share!r} must be a share of the step time, above 0 and up to 1 (0.02)")
        if not isinstance(self.strict, bool):
            raise UserError(f"strict={self.strict!r} must be True or False")
        if self.patching not in PATCHING:
            raise UserError(f"patching={self.patching!r} is unknown; use one of {', '.join(PATCHING)}")
        _check_probes(self.probes)
        if names_openers(self.probes):
            try:
                path_points(self.scoring.alphas, self.scoring.steps, self.openers.metric)
            except UserError as error:
                raise UserError(f"scoring.{error}") from error
        if self.folder is not None and not isinstance(self.folder, str | PathLike):
            raise UserError(f"folder={self.folder!r} must be a path")
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise UserError(f"report_to={self.report_to!r} must be a name or a list of names")
        check_report_to(self.report_to, self.wandb)

    @property
    def sinks(self) -> tuple[str, ...] | None:
        """The sinks that are named; None for "auto"."""
        return check_report_to(self.report_to, self.wandb)

    @property
    def families(self) -> tuple[str, ...]:
        """The families that are named; () for a probe set, a file, or families chosen when training begins."""
        if self.probes is None or isinstance(self.probes, ProbeSet | PathLike):
            return ()
        names = (self.probes,) if isinstance(self.probes, str) else tuple(self.probes)
        return names if all(name in (*FAMILIES, OPENERS) for name in names) else ()

    @classmethod
    def from_options(cls, options: Any, prefix: str = "headwatch") -> "WatchSettings":
        """Settings from nested plain values, as YAML holds them.

        Args:
            options: {"every": 10, "evidence": {"q": 0.01}, ...}.
            prefix: names the mapping in messages: "headwatch.every=0 must be ...".

        Raises:
            UserError: an unknown option (with the nearest one), a value of the wrong type, or one that is not valid.
        """
        return read_settings(cls, options, prefix)

    def to_options(self) -> dict[str, Any]:
        """The nested plain values: `from_options` makes equal settings of them.

        Except for what YAML cannot hold: a ProbeSet is given by its families, a callable metric by its name.
        """
        options: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        options |= {name: dict(vars(options[name])) for name in GROUPS}
        options["scoring"]["metric"] = self.scoring.metric_name
        options["openers"]["questions"] = list(self.openers.sources)
        if isinstance(self.probes, ProbeSet):
            options["probes"] = list(self.probes.family_names)
        return {name: _plain(value) for name, value in options.items()}


def recorded(settings: WatchSettings, metric: Any, has_openers: bool) -> dict[str, Any]:
    """The settings as the manifest holds them: without the folder, and files by their names alone.

    Args:
        settings: the run's settings.
        metric: the metric's name; by family, if families have different ones.
        has_openers: whether the opener family is probed; otherwise its settings are left out.
    """
    options = settings.to_options()
    del options["folder"]  # a path describes the machine
    if isinstance(options["probes"], str):
        options["probes"] = Path(options["probes"]).name
    options["scoring"]["metric"] = metric
    options["openers"] = settings.openers.described() if has_openers else None
    return options


def _plain(value: Any) -> Any:
    if isinstance(value, PathLike):
        return fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that the file system does not take
        return False


def _check_probes(probes: Any) -> None:
    """Check everything about `probes` that needs no tokenizer; UserError if it is not valid."""
    names = (*FAMILIES, OPENERS)
    if isinstance(probes, str) and probes not in names and not _exists(probes):
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
