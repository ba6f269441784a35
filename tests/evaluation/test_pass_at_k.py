"""pass@k against all subsets, McNemar against the definition, intervals that cover what they should."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from headwatch.evaluation.pass_at_k import bootstrap_mean, compare, mcnemar_p, pass_at_k, success_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int) -> None:
    for correct in range(n + 1):
        grades = [1] * correct + [0] * (n - correct)
        for k in range(1, n + 1):
            subsets = list(combinations(grades, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples() -> None:
    assert pass_at_k(64, [3], 16)[0] == pytest.approx(1 - comb(61, 16) / comb(64, 16), abs=1e-12)


def test_success_at_k_depends_on_the_order() -> None:
    grades = [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert success_at_k(grades, 1).tolist() == [0, 1, 0]
    assert success_at_k(grades, 2).tolist() == [1, 1, 0]


def test_mcnemar_is_a_sign_test_of_the_changed_problems() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


def test_the_interval_covers_the_mean_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        found = bootstrap_mean(rng.random(100) < 0.3, resamples=400, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 0.90 <= covered / 400 <= 0.98


def test_a_comparison_names_the_problems_that_changed() -> None:
    mine, other = [1.0, 0.5, 0.0, 1.0, 0.75], [0.0, 1.0, 1.0, 1.0, 0.25]
    found = compare(mine, other, [3, 5, 7, 9, 11])
    assert found.newly_right == (3, 11)
    assert found.newly_wrong == (5, 7)  # half of the samples is not solved
    assert found.difference.value == pytest.approx(0.0)
    assert compare(mine, mine, [3, 5, 7, 9, 11]).p_value == 1
