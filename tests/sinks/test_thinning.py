"""The thinning schedule keeps its bound for any length of run and any number of figures."""

import pytest

from headwatch.sinks.thinning import Thinning


def carried(n_probes: int, n_figures: int, limit: int = 150) -> list[int]:
    thinning = Thinning(limit)
    probes = [probe for probe in range(n_probes) if thinning.due() and thinning.spend(n_figures)]
    assert thinning.spend(n_figures, final=True), "there is always room for the final set"
    assert thinning.spent <= limit
    return probes


def test_early_probes_are_dense_and_later_ones_spread_out() -> None:
    assert carried(40, 6) == [0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 36]


@pytest.mark.parametrize("n_figures", [1, 6, 7, 75])
@pytest.mark.parametrize("n_probes", [1, 30, 1_000, 20_000])
def test_the_number_of_media_is_bounded(n_probes: int, n_figures: int) -> None:
    assert carried(n_probes, n_figures)[0] == 0


def test_more_figures_than_the_limit_are_not_shown() -> None:
    thinning = Thinning(limit=5)
    assert not thinning.spend(6, final=True)
    assert thinning.spent == 0


def test_the_reach_that_the_docstring_states() -> None:
    assert len(carried(20_000, 6)) == 24
    assert carried(20_000, 6)[-1] == 220
