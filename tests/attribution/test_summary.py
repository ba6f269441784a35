"""The summary of head scores per family: means, shares and the order of the heads."""

import json

import pytest
import torch

from headwatch.attribution import HeadScores
from headwatch.attribution.scores import Checks, Readings
from headwatch.attribution.summary import summary
from headwatch.stats import INSUFFICIENT, OK


def head_scores(gap: torch.Tensor) -> HeadScores:
    """Two layers of two heads whose shares are 0.5, -0.25, 0.15 and 0.1, on 8 pairs of each of two families."""
    share = torch.tensor([[0.1, 0.5], [-0.25, 0.15]])
    return HeadScores(
        per_pair=torch.cat([gap[:, None, None] * share] * 2),
        input=torch.cat([gap, gap]),
        readings=Readings(
            metric_clean=torch.zeros(16),
            metric_corrupted=torch.cat([gap, gap]),
            correct=torch.tensor([True, True, False, True] * 4),
        ),
        families=("carry",) * 8 + ("recall",) * 8,
        metric="logit_diff",
        steps=5,
        alphas="midpoint",
        checks=Checks(0.0, None, 0.0),
    )


def test_rows_are_sorted_by_absolute_score() -> None:
    found = summary(head_scores(torch.linspace(-5.0, -3.0, 8)))
    assert list(found) == ["carry", "recall"]
    assert json.loads(json.dumps(found)) == found
    carry = found["carry"]
    assert (carry["pairs"], carry["accuracy"], carry["signal"]) == (8, 0.75, OK)
    assert (carry["metric_clean"], carry["metric_corrupted"]) == (0.0, pytest.approx(-4.0))
    assert [row["head"] for row in carry["heads"]] == ["L0.H1", "L1.H0", "L1.H1", "L0.H0"]
    assert [row["score"] for row in carry["heads"]] == pytest.approx([-2.0, 1.0, -0.6, -0.4])
    assert [row["share"] for row in carry["heads"]] == pytest.approx([0.5, -0.25, 0.15, 0.1])
    # 0.75 of the total |share| is less than 80 %, so a third head is active.
    assert [row["active"] for row in carry["heads"]] == [True, True, True, False]


def test_no_share_without_a_signal() -> None:
    found = summary(head_scores(torch.tensor([1.0, -1.0] * 4)))["recall"]
    assert found["signal"] == INSUFFICIENT
    assert {(row["share"], row["active"]) for row in found["heads"]} == {(None, None)}
