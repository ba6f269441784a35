"""Which probes of a run carry figures, when nobody knows how many probes there will be."""

PROBES_PER_STRIDE = 4


class Thinning:
    """Figures on the first probes, then on every 2nd, 4th, 8th ...: each stride for four probes that carry figures.

    The number of media stays at or below `limit` however long the run is, with room kept for a final set. Nothing is
    lost by skipping: every figure is cumulative. With 6 figures a probe and a limit of 150 the 24 sets before the final
    one reach to probe 220; after that only the final one is shown.
    """

    def __init__(self, limit: int = 150) -> None:
        self.limit = limit
        self.spent = 0
        self._probe = -1
        self._next = 0
        self._carried = 0

    def due(self) -> bool:
        """Call once a probe: whether this one should carry figures, budget permitting."""
        self._probe += 1
        if self._probe < self._next:
            return False
        self._next = self._probe + 2 ** (self._carried // PROBES_PER_STRIDE)
        self._carried += 1
        return True

    def spend(self, n_media: int, *, final: bool = False) -> bool:
        """Whether `n_media` figures fit; if so, they count. As many more are kept back for the final set."""
        needed = n_media if final else 2 * n_media
        if self.spent + needed > self.limit:
            return False
        self.spent += n_media
        return True
