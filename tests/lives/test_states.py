"""Counts over the states of a run, by hand on four heads in two layers."""

import numpy as np
import pytest

from headwatch.lives.history import HeadHistory


def test_counts_over_states() -> None:
    member = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1]], bool).reshape(4, 2, 2)
    history = HeadHistory(2, 2, rule="circuit")
    for step, now in enumerate(member):
        history.add_membership(step, now, now.astype(float))
    assert history.turnover() == [0, 2, 2, 3]
    assert history.gained_and_lost() == ([0, 2, 1, 1], [0, 0, 1, 2])
    assert history.membership_changes() == [0, 2, 2, 3]
    assert history.persistence() == pytest.approx(2 / 3)  # 1.0 and 1.1 of the three that emerged
    assert history.layer_profile() == {"base": [1, 0], "dropped": [1, 0], "emerged": [1, 2], "still_active": [0, 2]}
    assert history.emergence_centre() == pytest.approx(2 / 3)
    assert history.entropy()[0] == 0.0
    assert history.entropy()[1] == pytest.approx(np.log(3) / np.log(4))
    scalars = history.latest_scalars()
    assert (scalars["turnover"], scalars["persistence"]) == (3, pytest.approx(2 / 3))
    empty = HeadHistory(2, 2)
    assert empty.turnover() == empty.membership_changes() == empty.intensity() == []
    assert np.isnan(empty.persistence())
    assert np.isnan(empty.emergence_centre())
    assert empty.layer_profile()["emerged"] == [0, 0]
