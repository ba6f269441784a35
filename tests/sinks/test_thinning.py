"""The thinning schedule keeps its bound for any length of run and any number of figures."""

import pytest

from headwatch.sinks.thinning import REACH, Thinning


def carried(n_probes: int, n_figures: int, limit: int = 150) -> list[int]:
    thinning = Thinning(limit)
    probes = [probe for probe in range(n_probes) if thinning.due() and thinning.spend(n_figures)]
    assert thinning.spend(n_figures, final=True), "there is always room for the final set"
    assert thinning.spent <= limit
    return probes


def test_early_probes_are_dense_and_later_ones_spread_out() -> None:
    assert carried(40, 6) == [0, 1, 2, 3, 5, 7, 10, 14, 19, 26, 35]
    assert carried(400, 30) == [0, 1, 6, 34]


@pytest.mark.parametrize("n_figures", [1, 6, 7, 75])
@pytest.mark.parametrize("n_probes", [1, 30, 1_000, 20_000])
def test_the_number_of_media_is_bounded(n_probes: int, n_figures: int) -> None:
    assert carried(n_probes, n_figures)[0] == 0


def test_more_figures_than_the_limit_are_not_shown() -> None:
    thinning = Thinning(limit=5)
    assert not thinning.spend(6, final=True)
    assert thinning.spent == 0


@pytest.mark.parametrize("n_figures", [1, 6, 15, 30])
def test_a_thousand_probes_do_not_use_the_budget_up_early(n_figures: int) -> None:
    probes = carried(1_000, n_figures)
    factor = REACH ** (1 / (150 // n_figures - 1))
    assert 1_000 / probes[-1] <= factor**2  # at the end the figures shown are at most two gaps old
