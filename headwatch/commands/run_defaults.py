"""What a command takes from the recorded run of --run where its own options are not given: pairs, metric, path."""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwatch.commands.loading import probes_argument
from headwatch.commands.options import ALPHAS, FAMILIES, METRICS
from headwatch.errors import UserError
from headwatch.probes import ProbeSet
from headwatch.record.layout import PROBES
from headwatch.record.recorded_settings import recorded_settings
from headwatch.record.run_folder import RunFolder

PATH = {"metric": METRICS[0], "steps": 5, "alphas": ALPHAS[0]}
"""The options of the path, with the values that they have without a run."""


@dataclass
class RunDefaults:
    """The options of a command, completed from a run.

    Attributes:
        run: the run; None without --run, and then only the command's own defaults are used.
        arguments: options that were not given are None.
        notes: options that differ from the run's, in a few words each.
    """

    run: RunFolder | None
    arguments: argparse.Namespace
    notes: list[str] = field(default_factory=list)

    @property
    def _settings(self) -> dict[str, Any]:
        return {} if self.run is None else recorded_settings(self.run.manifest)

    @property
    def seed(self) -> int:
        """--seed, the run's seed, or 0."""
        recorded = self._settings.get("seed")
        return int(self._choose("seed", recorded if isinstance(recorded, int) else None, 0))

    def path(self, families: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """metric, steps and alphas of each family.

        Raises:
            UserError: the run's metric is a function, which only its own script has.
        """
        recorded = dict(self._settings.get("scoring") or {})
        steps = self._choose("steps", recorded.get("steps"), PATH["steps"])
        alphas = self._choose("alphas", recorded.get("alphas"), PATH["alphas"])
        of_run = recorded.get("metric")
        by_family = of_run if isinstance(of_run, dict) else dict.fromkeys(families, of_run)
        metrics = {family: self._choose("metric", by_family.get(family), PATH["metric"]) for family in families}
        for family, metric in metrics.items():
            if metric not in METRICS:
                raise UserError(
                    f"--run: its metric {metric!r} on {family} is a function of its script: give --metric, one of "
                    f"{', '.join(METRICS)}"
                )
        return {family: {"metric": metric, "steps": steps, "alphas": alphas} for family, metric in metrics.items()}

    def planned(self, families: tuple[str, ...], n_pairs: int) -> dict[str, int | None]:
        """Family -> number of its pairs, without a tokenizer; for a file its name and None. Arguments of `probes`."""
        given, pairs = self.arguments.probes, self.arguments.pairs
        if given is not None and len(given) == 1 and Path(given[0]).is_file():
            return {given[0]: None}
        own = {} if self.run is None else {name: len(self.run.pairs_of(name)) for name in self.run.families}
        names = given or list(own) or list(families)
        if not set(names) <= set(own):
            probes_argument(names)
        return {name: pairs or own.get(name, max(own.values(), default=n_pairs)) for name in names}

    def probes(self, tokenizer: Any, families: tuple[str, ...], n_pairs: int) -> ProbeSet:
        """The pairs: the run's own, unless the options ask for others.

        Args:
            tokenizer: of the model.
            families: of the command, without --probes and without a run.
            n_pairs: pairs per family, without --pairs and without a run.

        Raises:
            UserError: the options cannot be satisfied.
        """
        given, pairs = self.arguments.probes, self.arguments.pairs
        own = self._own_pairs(tokenizer)
        if own is None:
            recorded = [] if self.run is None else [name for name in self.run.families if name in FAMILIES]
            wanted = probes_argument(given or recorded or list(families))
            return ProbeSet.resolve(wanted, tokenizer, n_pairs=pairs or n_pairs, seed=self.seed)
        names = list(own.family_names) if given is None else given
        other_seed = self.seed != int(self._settings.get("seed") or 0)
        if set(names) <= set(own.family_names) and not other_seed:
            chosen = [row for name in names for row in _rows(own, name)[:pairs]]
            fewest = min(Counter(own.families)[name] for name in names)
            if pairs is None or pairs <= fewest:
                return own if len(chosen) == len(own) else own.select(chosen)
        unknown = [name for name in names if name in own.family_names and name not in FAMILIES]
        if unknown:
            raise UserError(
                f"--run: its pairs of {', '.join(unknown)} cannot be generated again: leave --pairs and --seed out"
            )
        size = pairs or max(Counter(own.families).values())
        self.notes.append(f"new pairs of {', '.join(names)}, {size} per family, seed {self.seed}")
        return ProbeSet.resolve(probes_argument(names), tokenizer, n_pairs=size, seed=self.seed)

    def print_notes(self) -> None:
        """Print one line on standard error about what differs from the run, if anything does."""
        if self.notes:
            print(f"headwatch: other than in --run: {'; '.join(dict.fromkeys(self.notes))}", file=sys.stderr)

    def _own_pairs(self, tokenizer: Any) -> ProbeSet | None:
        """The run's frozen pairs; None without a run, and for a record without them."""
        if self.run is None or not (self.run.path / PROBES).is_file():
            return None
        return ProbeSet.load(self.run.path / PROBES, tokenizer)

    def _choose(self, option: str, recorded: Any, default: Any) -> Any:
        """The value that was given, else the run's, else the default; a difference from the run is noted."""
        given = getattr(self.arguments, option)
        if given is None:
            return default if recorded is None else recorded
        if recorded is not None and given != recorded:
            self.notes.append(f"--{option} {given} (the run has {recorded})")
        return given


def refuse_other_shape(run: RunFolder | None, model: str, shape: tuple[int, int]) -> None:
    """Refuse a model of another shape than the run's: its heads are others.

    Args:
        run: the run of --run.
        model: name of the model.
        shape: its layers and heads.

    Raises:
        UserError: the shapes differ.
    """
    if run is None:
        return
    recorded = run.manifest["model"]
    own = (recorded["n_layers"], recorded["n_heads"])
    if shape != own:
        raise UserError(
            f"--run {run.path} records a model with {own[0]} layers x {own[1]} heads, and {model} has {shape[0]} x "
            f"{shape[1]}: give the run of this model"
        )


def _rows(probes: ProbeSet, family: str) -> list[int]:
    return [row for row, name in enumerate(probes.families) if name == family]
