"""The sign-flip test against enumeration, scipy, and random signs."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import permutation_test

from headwatch.stats.sign_flip import MOST_ENUMERATED, enumerated, saddlepoint, sign_flip_p

Floats = NDArray[np.float64]

VALUES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, shape),
    "skewed": lambda rng, shape: np.exp(rng.standard_normal(shape)) - np.exp(0.5),
}


def by_hand(values: Floats) -> float:
    """All patterns of signs, one at a time."""
    n = len(values)
    patterns = [[1 if (k >> i) & 1 else -1 for i in range(n)] for k in range(2**n)]
    observed = abs(values.sum())
    return float(np.mean([abs(values @ np.array(p)) >= observed * (1 - 1e-12) for p in patterns]))


def test_few_pairs_are_enumerated() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        values = rng.standard_normal((n, 2, 3)) + 0.5
        p = sign_flip_p(values)
        assert p.shape == (2, 3)
        for at in np.ndindex(2, 3):
            assert p[at] == pytest.approx(by_hand(values[:, *at]), abs=1e-12)


@pytest.mark.parametrize("n_pairs", [2, 5, 10])
def test_enumeration_is_scipys_permutation_test(n_pairs: int) -> None:
    values = np.random.default_rng(6).standard_normal((n_pairs, 20)) + 0.5

    def statistic(x: Floats, axis: int) -> Floats:
        return np.abs(x.sum(axis=axis))

    expected = permutation_test((values,), statistic, permutation_type="samples", alternative="greater")
    np.testing.assert_array_equal(enumerated(values), expected.pvalue)


@pytest.mark.parametrize("kind", VALUES)
def test_the_saddlepoint_tail_is_close_to_the_enumerated_one(kind: str) -> None:
    """16 pairs, 300 columns with means from none to large, against all 65,536 patterns.

    Half of the p are within 10 % and nine in ten within 35 %; below 1e-3 (65 patterns) steps of one pattern show.
    """
    values = VALUES[kind](np.random.default_rng(1), (16, 300)) + np.linspace(0.0, 1.5, 300)
    exact, found = enumerated(values), saddlepoint(values)
    ratio = found / exact
    assert np.quantile(np.abs(np.log(ratio)), 0.5) < np.log(1.10)
    assert np.quantile(np.abs(np.log(ratio)), 0.9) < np.log(1.35)
    likely = exact > 0.01
    assert np.quantile(np.abs(np.log(ratio[likely])), 0.9) < np.log(1.2)
    assert ratio[~likely].min() > 0.4


def test_the_tail_of_a_few_patterns() -> None:
    """All differences but one have the same sign: p of a few patterns, where the mass of the observed one matters."""
    values = np.abs(np.random.default_rng(5).standard_normal((15, 400))) + 0.2
    values[0] *= -1.0
    ratio = saddlepoint(values) / enumerated(values)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.025)


@pytest.mark.parametrize("kind", VALUES)
def test_64_pairs_agree_with_random_signs(kind: str) -> None:
    """Within 15 %, needed for columns whose sum depends on one outlier; the median is far smaller."""
    rng = np.random.default_rng(2)
    values = VALUES[kind](rng, (64, 40)) + np.linspace(0.0, 0.5, 40)
    signs = rng.choice([-1.0, 1.0], (20_000, 64))
    beaten = (np.abs(signs @ values) >= np.abs(values.sum(axis=0))).sum(axis=0)
    p = (beaten + 1) / 20_001
    noise = 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-4  # of the reference
    assert (np.abs(sign_flip_p(values) - p) <= 0.15 * p + noise).all()
    assert np.median(np.abs(sign_flip_p(values) / p - 1.0)[p > 0.05]) < 0.02


def test_no_p_is_smaller_than_one_pattern_of_all() -> None:
    for n in (MOST_ENUMERATED, 20, 64):
        same = np.ones((n, 1))
        assert sign_flip_p(same)[0] == pytest.approx(2.0 ** (1 - n))
        sparse = np.where(np.arange(n) < 5, 1.0, 0.0)[:, None]
        assert sign_flip_p(sparse)[0] == pytest.approx(2.0**-4)
        assert sign_flip_p(np.zeros((n, 1)))[0] == 1.0
        nothing = np.tile([1.0, -1.0], n // 2)[:, None]
        assert sign_flip_p(nothing)[0] == 1.0


def test_p_does_not_depend_on_units() -> None:
    values = np.random.default_rng(3).standard_normal((40, 30)) + 0.4
    for unit in (1e-12, -3.0, 1e9):
        np.testing.assert_allclose(sign_flip_p(unit * values), sign_flip_p(values), rtol=1e-9)


@pytest.mark.parametrize("n_pairs", [10, 32])
def test_p_values_are_uniform_where_nothing_changed(n_pairs: int) -> None:
    """Independent, symmetric, of different sizes: P(p <= x) = x, up to the steps of few patterns."""
    rng = np.random.default_rng([4, n_pairs])
    values = rng.standard_t(3, (n_pairs, 20_000)) * np.exp(rng.standard_normal((n_pairs, 1)))
    p = sign_flip_p(values)
    for x in (0.01, 0.05, 0.2, 0.5, 0.9):
        assert (p <= x).mean() == pytest.approx(x, abs=4 * np.sqrt(x * (1 - x) / 20_000) + 0.002)
