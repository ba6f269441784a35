"""KL divergence from the base model, whose distributions at the read positions are kept from the base probe.

KL(model now || base) at every read position of the clean prompts, mean over a pair's positions, in nats. No second
model is kept in memory. For full and LoRA training alike, the base is the model at the beginning of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwatch.attribution.metrics import Reads

WHOLE_VOCABULARY = 4096  # up to this size the whole vocabulary is kept
TOP_K = 1024  # of a larger one the base's most likely tokens, and all others as one bucket


@dataclass(frozen=True)
class BaseAnswers:
    """The base model's log-probabilities at the read positions of N pairs, P positions each.

    Attributes:
        log_probs: float32 [N, P, V], or [N, P, K + 1] with all other tokens as the last entry.
        tokens: int32 [N, P, K], the base's K most likely tokens; None if the whole vocabulary is kept.

    Pooling tokens can only lower a KL divergence (data-processing inequality): with `tokens` the result is a lower
    bound of the KL over the whole vocabulary.
    """

    log_probs: Tensor
    tokens: Tensor | None = None


class AnswerObserver:
    """Observer of a pass: records the answers at the base probe, and their KL from the base at later ones.

    Args:
        base: the answers to compare with; None at the base probe.
        n_pairs, n_positions: N and P of the probe set.

    Attributes:
        kl: float32 [N], in nats, after the pass; 0 at the base probe, NaN for pairs that were not observed.
    """

    def __init__(self, base: BaseAnswers | None, n_pairs: int, n_positions: int) -> None:
        self._base, self._shape = base, (n_pairs, n_positions)
        self.kl = torch.full((n_pairs,), float("nan"))
        self._log_probs: Tensor | None = None
        self._tokens: Tensor | None = None

    def __call__(self, pairs: Tensor, logits: Tensor, reads: Reads) -> None:
        """Record one batch: pairs [B], clean logits [B, P, V]."""
        rows = pairs.cpu()
        positions = logits.shape[1]
        if self._base is None:
            self._keep(rows, logits)
            self.kl[rows] = 0.0
            return
        tokens = None if self._base.tokens is None else self._base.tokens[rows, :positions].to(logits.device)
        base = self._base.log_probs[rows, :positions].to(logits.device)
        # Rounded like the base, so an unchanged model has exactly 0.
        now = lumped(logits, None if tokens is None else tokens.long()).float()
        kl = (now.exp() * (now - base)).sum(-1)
        present = reads.present.to(logits.device)
        self.kl[rows] = ((kl * present).sum(-1) / present.sum(-1)).clamp(min=0.0).float().cpu()

    def answers(self) -> BaseAnswers | None:
        """The recorded answers; None if nothing was observed or this is not the base probe."""
        return None if self._log_probs is None else BaseAnswers(self._log_probs, self._tokens)

    def _keep(self, rows: Tensor, logits: Tensor) -> None:
        vocabulary, positions = logits.shape[-1], logits.shape[1]
        tokens = logits.topk(TOP_K, -1).indices if vocabulary > WHOLE_VOCABULARY else None
        log_probs = lumped(logits, tokens)
        if self._log_probs is None:
            self._log_probs = torch.zeros(*self._shape, log_probs.shape[-1])
            if tokens is not None:
                self._tokens = torch.zeros(*self._shape, TOP_K, dtype=torch.int32)
        self._log_probs[rows, :positions] = log_probs.float().cpu()
        if tokens is not None and self._tokens is not None:
            self._tokens[rows, :positions] = tokens.int().cpu()


def lumped(logits: Tensor, tokens: Tensor | None) -> Tensor:
    """Log-probabilities [..., V], or [..., K + 1] of `tokens` [..., K] and of all other tokens together.

    Computed in float64 (float32 on MPS) for one position at a time: float64 logits of a whole batch may not fit in
    memory next to a large model.
    """
    if logits.ndim > 1:
        parts = [lumped(row, None if tokens is None else tokens[i]) for i, row in enumerate(logits)]
        return torch.stack(parts)
    log_probs = (logits.float() if logits.device.type == "mps" else logits.double()).log_softmax(-1)
    if tokens is None:
        return log_probs
    rest = log_probs.scatter(-1, tokens, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, tokens), rest], -1)


def mean_by_family(kl: Tensor, families: Sequence[str]) -> dict[str, float]:
    """Mean over the pairs of each family."""
    return {
        name: float(kl[[i for i, f in enumerate(families) if f == name]].mean()) for name in dict.fromkeys(families)
    }
