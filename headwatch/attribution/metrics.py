"""The three metrics, read at the read positions of a probe pair."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from headwatch.errors import UserError


@dataclass(frozen=True)
class Reads:
    """What a metric compares with at the read positions: B pairs with up to P positions each.

    Attributes:
        answers: [B, 2], token ids of the clean and the corrupted answer; -1 if a pair has none.
        targets: [B, P], the clean continuation's token at each read position; -1 if a pair has fewer positions.
        present: bool [B, P], which read positions exist.
    """

    answers: Tensor
    targets: Tensor
    present: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over each pair's read positions: [B, P] -> [B]."""
        return (values * self.present).sum(-1) / self.present.sum(-1)

    def correct(self, logits: Tensor) -> Tensor:
        """Whether the most likely token is the target at every read position: [B, P, V] -> bool [B]."""
        return ((logits.argmax(-1) == self.targets) | ~self.present).all(-1)

    def repeat(self, times: int) -> "Reads":
        """The same reads for several runs, stacked along the batch."""
        return Reads(self.answers.repeat(times, 1), self.targets.repeat(times, 1), self.present.repeat(times, 1))


Metric = Callable[[Tensor, Tensor, Reads], Tensor]
"""metric(logits [B, P, V], clean_logits [B, P, V], reads) -> [B]: one differentiable number per pair."""


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


def resolve_metric(metric: str | Metric) -> tuple[str, Metric]:
    """A metric's name and function.

    Raises:
        UserError: the name is unknown.
    """
    if callable(metric):
        return getattr(metric, "__name__", "custom"), metric
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(f"metric={metric!r} is unknown; use one of {', '.join(METRICS)}, or a callable")
    return metric, METRICS[metric]
