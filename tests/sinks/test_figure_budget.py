"""The thinning schedule keeps its bound for any length of run and any number of figures."""

import pytest

from headwatch.sinks.figure_budget import REACH, Budget, Thinning


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


def shown(families: int, n_probes: int, each: int = 5, limit: int = 150) -> list[list[int]]:
    """At which probes each family's figures are shown; the last one is announced as final."""
    budget = Budget(limit)
    figures = {f"f{family}/{name}": {} for family in range(families) for name in range(each)}
    probes: list[list[int]] = [[] for _ in range(families)]
    count = 0
    for probe in range(n_probes):
        final = probe == n_probes - 1
        if not budget.due() and not final:
            continue
        picked = budget.pick(figures, final=final)
        count += len(picked)
        for family in range(families):
            if f"f{family}/0" in picked:
                probes[family].append(probe)
    assert count <= limit
    return probes


def test_with_five_families_the_first_is_not_thinned_with_the_others() -> None:
    probes = shown(5, 1_000)
    assert len(probes[0]) == 15
    assert {len(p) for p in probes[1:]} == {3}
    together = Thinning(150)  # what one limit for all of them alike would leave
    assert sum(together.due() and together.spend(25) for _ in range(999)) + together.spend(25, final=True) <= 6


@pytest.mark.parametrize("families", [1, 2, 5, 12, 29, 30])
@pytest.mark.parametrize("n_probes", [1, 2, 50, 1_000])
def test_the_final_set_has_room_for_every_family(families: int, n_probes: int) -> None:
    assert all(p[-1] == n_probes - 1 for p in shown(families, n_probes))


def test_families_for_which_there_is_no_room_are_left_out() -> None:
    probes = shown(40, 10)
    assert [bool(p) for p in probes] == [True] * 30 + [False] * 10


def test_one_family_is_thinned_as_before() -> None:
    assert shown(1, 40)[0][:-1] == carried(39, 5)


def test_no_figures_are_no_families() -> None:
    budget = Budget()
    assert budget.due()
    assert budget.pick({}) == {}
