"""Which probes log figures, when the number of probes is not known in advance."""

import math
from collections.abc import Mapping
from typing import Any

HORIZON = 1000  # probes over which a schedule spreads its figures; a longer run adds those of its last probe only


class FigureSchedule:
    """Log figures at the first probes, then at ever fewer: the gaps grow by a constant factor.

    At most `limit` figures are logged, however long the run, and one set is reserved for the last probe. The factor
    follows from the number of sets that fit: with 6 figures per probe and a limit of 150 it is 1.33, so the latest
    figures are at most a quarter of the run old. Every figure is cumulative, so a skipped one loses nothing.
    """

    def __init__(self, limit: int = 150) -> None:
        self.limit = limit
        self.used = 0
        self._probe = -1
        self._next: float = 0

    def due(self) -> bool:
        """Whether this probe should log figures. Call it once per probe."""
        self._probe += 1
        return self._probe >= self._next

    def use(self, n_figures: int, *, final: bool = False) -> bool:
        """Count `n_figures` if they fit; returns whether they do. Before the final set, room for one more is kept."""
        fits = self.used + (n_figures if final else 2 * n_figures) <= self.limit
        if fits:
            self.used += n_figures
            factor = HORIZON ** (1 / max(self.limit // max(n_figures, 1) - 1, 1))
            self._next = max(self._probe + 1, math.ceil(self._probe * factor))
        elif not final:
            self._next = math.inf
        return fits


class FigureBudget:
    """Choose the figures that each probe logs, with one schedule per probe family.

    Figures are named family/figure. One schedule for five families, 25 figures per probe, would log six sets within 150
    figures. With its own schedule the first family has at least half of the limit: over 1,000 probes it logs 15 sets
    and each of the other four logs 3. Every family keeps room for its final set as long as one set of all families
    fits; otherwise the last families are left out.
    """

    def __init__(self, limit: int = 150) -> None:
        self.limit = limit
        self._schedules: dict[str, FigureSchedule] = {}  # by family, once the families are known
        self._due: set[str] | None = None  # None: all families

    def due(self) -> bool:
        """Whether this probe should log any figures. Call it once per probe."""
        if self._schedules:
            self._due = {family for family, schedule in self._schedules.items() if schedule.due()}
        return self._due is None or bool(self._due)

    def select(self, figures: Mapping[str, Any], *, final: bool = False) -> dict[str, Any]:
        """The figures of this probe to log, which are counted; on the final probe all that fit."""
        sets: dict[str, dict[str, Any]] = {}
        for name, figure in figures.items():
            sets.setdefault(name.rpartition("/")[0], {})[name] = figure
        if sets and not self._schedules:
            self._schedules = {family: FigureSchedule(limit) for family, limit in self._limits(sets).items()}
            for schedule in self._schedules.values():
                schedule.due()  # counts this probe
        selected: dict[str, Any] = {}
        for family, own in sets.items():
            due = final or self._due is None or family in self._due
            if due and family in self._schedules and self._schedules[family].use(len(own), final=final):
                selected |= own
        return selected

    def _limits(self, sets: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Each family's part of the limit: at least one set, as long as it fits."""
        first, *others = sets
        left, limits = self.limit - len(sets[first]), {}
        for family in others:
            limit = min(max(len(sets[family]), self.limit // 2 // len(others)), left)
            limits[family] = limit if limit >= len(sets[family]) else 0
            left -= limits[family]
        return {first: len(sets[first]) + left, **limits}
