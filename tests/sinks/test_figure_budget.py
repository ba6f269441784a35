"""The schedule of figures stays within its limit, whatever the length of the run and the number of figures."""

import pytest

from headwatch.sinks.figure_budget import HORIZON, FigureBudget, FigureSchedule


def logged_probes(n_probes: int, n_figures: int, limit: int = 150) -> list[int]:
    """The probes with figures; checks the limit and the room for the final set."""
    schedule = FigureSchedule(limit)
    probes = [probe for probe in range(n_probes) if schedule.due() and schedule.use(n_figures)]
    assert schedule.use(n_figures, final=True)
    assert schedule.used <= limit
    return probes


@pytest.mark.parametrize(
    ("n_probes", "n_figures", "expected"),
    [(40, 6, [0, 1, 2, 3, 5, 7, 10, 14, 19, 26, 35]), (400, 30, [0, 1, 6, 34])],
)
def test_gaps_between_figures_grow(n_probes: int, n_figures: int, expected: list[int]) -> None:
    assert logged_probes(n_probes, n_figures) == expected


@pytest.mark.parametrize("n_figures", [1, 6, 7, 75])
@pytest.mark.parametrize("n_probes", [1, 30, 1_000, 20_000])
def test_the_number_of_figures_is_bounded(n_probes: int, n_figures: int) -> None:
    assert logged_probes(n_probes, n_figures)[0] == 0


def test_a_set_larger_than_the_limit_is_not_logged() -> None:
    schedule = FigureSchedule(limit=5)
    assert not schedule.use(6, final=True)
    assert schedule.used == 0


@pytest.mark.parametrize("n_figures", [1, 6, 15, 30])
def test_figures_last_for_a_thousand_probes(n_figures: int) -> None:
    probes = logged_probes(1_000, n_figures)
    factor = HORIZON ** (1 / (150 // n_figures - 1))
    assert 1_000 / probes[-1] <= factor**2  # at the end the latest figures are at most two gaps old


def logged_by_family(n_families: int, n_probes: int, per_family: int = 5, limit: int = 150) -> list[list[int]]:
    """The probes at which each family logs figures; the last probe is final. Checks the limit."""
    budget = FigureBudget(limit)
    figures = {f"f{family}/{name}": {} for family in range(n_families) for name in range(per_family)}
    probes: list[list[int]] = [[] for _ in range(n_families)]
    count = 0
    for probe in range(n_probes):
        final = probe == n_probes - 1
        if not budget.due() and not final:
            continue
        selected = budget.select(figures, final=final)
        count += len(selected)
        for family in range(n_families):
            if f"f{family}/0" in selected:
                probes[family].append(probe)
    assert count <= limit
    return probes


def test_the_first_of_five_families_has_most_figures() -> None:
    probes = logged_by_family(5, 1_000)
    assert len(probes[0]) == 15
    assert {len(p) for p in probes[1:]} == {3}
    common = FigureSchedule(150)  # one schedule for all families
    assert sum(common.due() and common.use(25) for _ in range(999)) + common.use(25, final=True) <= 6


@pytest.mark.parametrize("n_families", [1, 2, 5, 12, 29, 30])
@pytest.mark.parametrize("n_probes", [1, 2, 50, 1_000])
def test_every_family_has_room_for_its_final_set(n_families: int, n_probes: int) -> None:
    assert all(p[-1] == n_probes - 1 for p in logged_by_family(n_families, n_probes))


def test_families_without_room_are_left_out() -> None:
    probes = logged_by_family(40, 10)
    assert [bool(p) for p in probes] == [True] * 30 + [False] * 10


def test_one_family_follows_one_schedule() -> None:
    assert logged_by_family(1, 40)[0][:-1] == logged_probes(39, 5)


def test_no_figures_use_no_budget() -> None:
    budget = FigureBudget()
    assert budget.due()
    assert budget.select({}) == {}
