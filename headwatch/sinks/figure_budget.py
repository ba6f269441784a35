"""Which probes log figures, when the number of probes is not known in advance."""

import math
from collections.abc import Mapping
from typing import Any

REACH = 1000  # probes; a run that has more carries figures on its last one only, after this


class Thinning:
    """Figures on the first probes, then on ever fewer: the gaps grow by a constant factor.

    The number of media stays at or below `limit` however long the run is, with room kept for the final set. The factor
    follows from how many sets fit: with 6 figures a probe and a limit of 150 it is 1.33, so that the figures shown are
    at most a quarter of the run old. Nothing is lost by skipping, as every figure is cumulative.
    """

    def __init__(self, limit: int = 150) -> None:
        self.limit = limit
        self.spent = 0
        self._probe = -1
        self._next: float = 0

    def due(self) -> bool:
        """Call once a probe: whether this one should carry figures."""
        self._probe += 1
        return self._probe >= self._next

    def spend(self, n_media: int, *, final: bool = False) -> bool:
        """Whether a set of `n_media` figures fits; if so, it counts. As many are kept back for the final set."""
        fits = self.spent + (n_media if final else 2 * n_media) <= self.limit
        if fits:
            self.spent += n_media
            factor = REACH ** (1 / max(self.limit // max(n_media, 1) - 1, 1))
            self._next = max(self._probe + 1, math.ceil(self._probe * factor))
        elif not final:
            self._next = math.inf
        return fits


class Budget:
    """Which figures of which probes are shown, when there are several families of them.

    Figures are named family/figure. One limit for all alike would leave five families, 25 figures a set, with six sets
    in 150 figures. Instead each family is thinned out on its own, and the first one has at least half of the limit:
    over 1,000 probes it then shows fifteen sets and each of the other four three. There is room for every family's
    final set as long as one set of all of them fits; families beyond that are left out, the last ones first.
    """

    def __init__(self, limit: int = 150) -> None:
        self.limit = limit
        self._families: dict[str, Thinning] = {}
        self._due: set[str] | None = None  # None: everything, the families are not known yet

    def due(self) -> bool:
        """Call once a probe: whether this one should carry any figures."""
        if self._families:
            self._due = {name for name, thinning in self._families.items() if thinning.due()}
        return self._due is None or bool(self._due)

    def pick(self, figures: Mapping[str, Any], *, final: bool = False) -> dict[str, Any]:
        """The figures to show, of those of one probe; they count. On the final probe: all that fit."""
        groups: dict[str, dict[str, Any]] = {}
        for name, figure in figures.items():
            groups.setdefault(name.rpartition("/")[0], {})[name] = figure
        if groups and not self._families:
            self._families = {name: Thinning(share) for name, share in self._shares(groups).items()}
            for thinning in self._families.values():
                thinning.due()  # this probe
        shown: dict[str, Any] = {}
        for name, group in groups.items():
            wanted = final or self._due is None or name in self._due
            if wanted and name in self._families and self._families[name].spend(len(group), final=final):
                shown |= group
        return shown

    def _shares(self, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Each family's part of the limit: at least one set each, as long as there is room for it."""
        first, *others = groups
        left, shares = self.limit - len(groups[first]), {}
        for name in others:
            fits = min(max(len(groups[name]), self.limit // 2 // len(others)), left)
            shares[name] = fits if fits >= len(groups[name]) else 0
            left -= shares[name]
        return {first: len(groups[first]) + left, **shares}
