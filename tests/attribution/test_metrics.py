"""Metrics and path points, which the naive reference shares, against torch and known values."""

import pytest
import torch
from torch.nn import functional

from headwatch.attribution.metrics import METRICS, Reads
from headwatch.attribution.path import path_points
from headwatch.attribution.scores import mean_relative_error

B, P, V = 3, 2, 7


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, B, P, V, dtype=torch.float64, generator=generator)
    return one, other


@pytest.fixture
def reads() -> Reads:
    """The last pair has one read position, the others two."""
    return Reads(
        answers=torch.tensor([[1, 2], [3, 0], [6, 5]]),
        targets=torch.tensor([[1, 4], [3, 3], [6, -1]]),
        present=torch.tensor([[True, True], [True, True], [True, False]]),
    )


@pytest.mark.parametrize(
    ("alphas", "metric", "points"),
    [
        ("midpoint", "kl", [0.125, 0.375, 0.625, 0.875]),
        ("right", "kl", [0.25, 0.5, 0.75, 1.0]),
        ("left", "kl", [0.0, 0.25, 0.5, 0.75]),
        ("clean", "nll", [1.0]),
        ("ends", "kl", [1.0, 0.0]),
    ],
)
def test_path_points(alphas: str, metric: str, points: list[float]) -> None:
    assert path_points(alphas, 4, metric) == points


def test_logit_diff_reads_the_first_position(logits, reads: Reads) -> None:
    run, clean = logits
    expected = [run[0, 0, 1] - run[0, 0, 2], run[1, 0, 3] - run[1, 0, 0], run[2, 0, 6] - run[2, 0, 5]]
    assert torch.allclose(METRICS["logit_diff"](run, clean, reads), torch.stack(expected))


def test_nll_is_the_cross_entropy_of_the_clean_continuation(logits, reads: Reads) -> None:
    run, clean = logits
    expected = [
        functional.cross_entropy(run[pair, :length], reads.targets[pair, :length])
        for pair, length in enumerate((2, 2, 1))
    ]
    assert torch.allclose(METRICS["nll"](run, clean, reads), torch.stack(expected))


def test_kl_is_from_the_clean_distribution_to_the_run(logits, reads: Reads) -> None:
    run, clean = logits
    expected = [
        functional.kl_div(
            run[pair, :length].log_softmax(-1), clean[pair, :length].softmax(-1), reduction="batchmean"
        )  # torch's kl_div(q, p) is KL(p || q)
        for pair, length in enumerate((2, 2, 1))
    ]
    found = METRICS["kl"](run, clean, reads)
    assert torch.allclose(found, torch.stack(expected))
    assert (found > 0).all()
    assert METRICS["kl"](clean, clean, reads).abs().max() < 1e-14


def test_correct_requires_every_token_of_the_answer(logits, reads: Reads) -> None:
    run = torch.zeros(B, P, V)
    run.scatter_(-1, reads.targets.clamp(min=0)[..., None], 1.0)
    assert reads.correct(run).tolist() == [True, True, True]
    run[0, 1] = torch.eye(V)[0]  # the second token of the first pair is wrong
    run[2, 1] = torch.eye(V)[3]  # beyond the last pair's read positions
    assert reads.correct(run).tolist() == [False, True, True]


def test_repeated_reads(reads: Reads) -> None:
    twice = reads.repeat(2)
    assert torch.equal(twice.answers[B:], reads.answers)
    assert torch.equal(twice.present[:B], reads.present)


def test_mean_relative_error() -> None:
    truth = torch.tensor([2.0, -2.0])
    assert mean_relative_error(torch.tensor([2.5, -1.5]), truth) == 0.25
    assert mean_relative_error(truth, truth) == 0
    assert mean_relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert mean_relative_error(truth, torch.zeros(2)) == float("inf")
