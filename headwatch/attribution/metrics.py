"""What is read off the model at a probe pair's read positions, and the points of the path where it is read."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headwatch.errors import UserError


@dataclass(frozen=True)
class Reads:
    """Where and against what a metric is read, for B pairs with up to P read positions each.

    Attributes:
        answers: [B, 2], token ids of the clean and the corrupted answer; -1 where a pair has none.
        targets: [B, P], the clean continuation's token at each read position; -1 where a pair has fewer positions.
        present: bool [B, P], which read positions exist.
    """

    answers: Tensor
    targets: Tensor
    present: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over each pair's own read positions: [B, P] -> [B]."""
        return (values * self.present).sum(-1) / self.present.sum(-1)

    def repeat(self, times: int) -> "Reads":
        """The same reads for several runs of the batch, one after the other."""
        return Reads(self.answers.repeat(times, 1), self.targets.repeat(times, 1), self.present.repeat(times, 1))


Metric = Callable[[Tensor, Tensor, Reads], Tensor]
"""metric(logits [B, P, V], clean_logits [B, P, V], reads) -> [B]: one differentiable number a pair."""


def logit_diff(logits: Tensor, clean_logits: Tensor, reads: Reads) -> Tensor:
    """Logit of the clean answer minus logit of the corrupted answer, at the first read position."""
    first = logits[:, 0].gather(-1, reads.answers)
    return first[:, 0] - first[:, 1]


def kl(logits: Tensor, clean_logits: Tensor, reads: Reads) -> Tensor:
    """KL(clean distribution || distribution), in nats, mean over the read positions (paper, section 2)."""
    log_p = clean_logits.log_softmax(-1)
    return reads.mean((log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1))


def nll(logits: Tensor, clean_logits: Tensor, reads: Reads) -> Tensor:
    """Negative log-likelihood of the clean continuation, in nats, mean over the read positions."""
    return reads.mean(-logits.log_softmax(-1).gather(-1, reads.targets.clamp(min=0)[..., None])[..., 0])


METRICS: dict[str, Metric] = {"logit_diff": logit_diff, "kl": kl, "nll": nll}
ALPHA_RULES = ("midpoint", "right", "left", "clean")


def resolve_metric(metric: str | Metric) -> tuple[str, Metric]:
    """A metric's name and function.

    Raises:
        UserError: the name is unknown.
    """
    if callable(metric):
        return getattr(metric, "__name__", "custom"), metric
    if metric not in METRICS:
        raise UserError(f"metric={metric!r} is unknown; use one of {', '.join(METRICS)}, or a callable")
    return metric, METRICS[metric]


def path_points(alphas: str, steps: int, metric_name: str) -> list[float]:
    """The alphas at which the gradient is taken, x(alpha) = corrupted + alpha (clean - corrupted); all weigh 1/m.

    "midpoint" (k + 1/2)/m, "right" k/m for k = 1..m (the paper), "left" k/m for k = 0..m-1 (the reference
    implementation of EAP-IG), "clean" a single gradient at the clean run (plain attribution patching).

    Raises:
        UserError: an unknown rule, fewer than one step, or "clean" with "kl", whose gradient there is always zero.
    """
    if alphas not in ALPHA_RULES:
        raise UserError(f"alphas={alphas!r} is unknown; use one of {', '.join(ALPHA_RULES)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps={steps!r} must be a whole number of at least 1 (5 is the default)")
    if alphas == "clean":
        if metric_name == "kl":
            raise UserError(
                'alphas="clean" with metric="kl" is identically zero, since the KL divergence has its minimum at the '
                'clean run; use alphas="midpoint" or metric="logit_diff"'
            )
        return [1.0]
    if alphas == "right" and steps == 1 and metric_name == "kl":
        raise UserError(
            'alphas="right" with steps=1 and metric="kl" is identically zero: its one point is the clean run, where '
            'the KL divergence has its minimum; use steps=5, or alphas="midpoint"'
        )
    shift = {"midpoint": 0.5, "right": 1.0, "left": 0.0}[alphas]
    return [(k + shift) / steps for k in range(steps)]


def accuracy(logits: Tensor, reads: Reads) -> Tensor:
    """Whether the most likely token is the clean continuation at every read position, bool [B]."""
    return ((logits.argmax(-1) == reads.targets) | ~reads.present).all(-1)


def mean_relative_error(estimate: Tensor, truth: Tensor) -> float:
    """Sum of |estimate - truth| over the sum of |truth|; 0 when both vanish."""
    total, error = float(truth.abs().sum()), float((estimate - truth).abs().sum())
    return error / total if total else (0.0 if error == 0 else math.inf)


def clean_reference(logits: Tensor) -> Tensor:
    """The clean run's logits as a constant in at least float32."""
    return logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
