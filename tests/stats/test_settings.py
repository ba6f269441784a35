"""EvidenceSettings: the levels over the probes of a run, options that are refused, and older records."""

import pytest

from headwatch.errors import UserError
from headwatch.stats import EvidenceSettings
from headwatch.stats.settings import CONFIRMATIONS


def test_levels_over_all_probes_sum_to_q() -> None:
    for confirm in ("level", "either"):
        settings = EvidenceSettings(confirm=confirm)
        spent = [settings.levels(k)[0] for k in range(1, 5001)]
        assert spent == sorted(spent, reverse=True)
        assert 0.99 * settings.q < sum(spent) < settings.q
    at_the_ninth = {confirm: EvidenceSettings(confirm=confirm).levels(9) for confirm in CONFIRMATIONS}
    strict = pytest.approx(0.01 / 90)
    assert at_the_ninth == {"either": (strict, 0.01), "level": (strict, 0), "next": (0, 0.01), "none": (0.01, 0)}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("carry", 0.0, "carry=0.0"),
        ("carry", 0.95, "carry=0.95"),
        ("keep", 1.2, "keep=1.2"),
        ("q", 0.0, "q=0.0"),
        ("min_change", -1.0, "min_change=-1.0"),
        ("min_pairs", 1, "min_pairs=1"),
        ("confirm", "twice", "confirm='twice'.*'level'"),
        ("test", "z", "test='z'.*'sign-flip'"),
        ("weights", "none", "weights='none'.*'equal'"),
    ],
)
def test_bad_settings_are_named(option: str, value: float | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvidenceSettings(**{option: value})  # type: ignore[arg-type]


def test_manifests_of_other_versions_are_read() -> None:
    read = EvidenceSettings.from_dict({"material": 0.01, "at_work": False, "q": 0.05, "of_a_later_version": 3})
    assert read == EvidenceSettings(min_change=0.01, require_nonzero_share=False, q=0.05)
