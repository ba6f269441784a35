"""Which probes of a run carry figures, when nobody knows how many probes there will be."""

import math

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
