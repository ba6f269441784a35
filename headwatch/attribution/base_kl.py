"""KL divergence from the base model, whose distributions at the read positions are kept from the base probe.

KL(model now || base) at every read position of the clean prompts, mean over a pair's positions, in nats. No second
model is kept in memory. For full and LoRA training alike, the base is the model at the beginning of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwatch.attribution.metrics import Reads
from headwatch.attribution.transfers import Downloads, on_device

WHOLE_VOCABULARY = 4096  # up to this size the whole vocabulary is kept
MAX_BYTES = 2**28  # of float64 logits at once; on the CPU one position at a time
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

    The host does not wait for the device: results arrive when `kl` or `answers` is read.
    """

    def __init__(self, base: BaseAnswers | None, n_pairs: int, n_positions: int) -> None:
        self._base, self._shape = base, (n_pairs, n_positions)
        self._kl = torch.full((n_pairs,), float("nan"))
        self._downloads = Downloads()
        self._log_probs: Tensor | None = None
        self._tokens: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """float32 [N], in nats, after the pass; 0 at the base probe, NaN for pairs that were not observed."""
        self._downloads.finish()
        return self._kl

    def __call__(self, pairs: Tensor, logits: Tensor, reads: Reads) -> None:
        """Record one batch: pairs [B], clean logits [B, P, V]."""
        rows = pairs.cpu()
        positions = logits.shape[1]
        if self._base is None:
            self._keep(rows, logits)
            self._kl[rows] = 0.0
            return
        base = on_device(self._base.log_probs[rows, :positions], logits.device)
        tokens = None
        if self._base.tokens is not None:
            tokens = on_device(self._base.tokens[rows, :positions], logits.device).long()
        # Rounded like the base, so an unchanged model has exactly 0.
        now = lumped(logits, tokens).float()
        kl = (now.exp() * (now - base)).sum(-1)
        present = on_device(reads.present, logits.device)
        self._downloads.add(self._kl, rows, ((kl * present).sum(-1) / present.sum(-1)).clamp(min=0.0))

    def answers(self) -> BaseAnswers | None:
        """The recorded answers; None if nothing was observed or this is not the base probe."""
        self._downloads.finish()
        return None if self._log_probs is None else BaseAnswers(self._log_probs, self._tokens)

    def _keep(self, rows: Tensor, logits: Tensor) -> None:
        vocabulary, positions = logits.shape[-1], logits.shape[1]
        tokens = logits.topk(TOP_K, -1).indices if vocabulary > WHOLE_VOCABULARY else None
        log_probs = lumped(logits, tokens)
        if self._log_probs is None:
            self._log_probs = torch.zeros(*self._shape, log_probs.shape[-1])
            if tokens is not None:
                self._tokens = torch.zeros(*self._shape, TOP_K, dtype=torch.int32)
        self._downloads.add(self._log_probs, rows, log_probs, slice(positions))
        if tokens is not None and self._tokens is not None:
            self._downloads.add(self._tokens, rows, tokens, slice(positions))


def lumped(logits: Tensor, tokens: Tensor | None) -> Tensor:
    """Log-probabilities [..., V], or [..., K + 1] of `tokens` [..., K] and of all other tokens together.

    Computed in float64 (float32 on MPS) for some positions at a time: float64 logits of a whole batch may not fit in
    memory next to a large model.
    """
    vocabulary, shape = logits.shape[-1], logits.shape[:-1]
    at_once = max(1, (MAX_BYTES if logits.device.type != "cpu" else 0) // (8 * vocabulary))
    rows = logits.reshape(-1, vocabulary).split(at_once)
    if tokens is None:
        return torch.cat([_log_probs(own) for own in rows]).reshape(*shape, -1)
    chosen = tokens.reshape(-1, tokens.shape[-1]).split(at_once)
    parts = []
    for own, kept in zip(rows, chosen, strict=True):
        log_probs = _log_probs(own)
        rest = log_probs.scatter(-1, kept, float("-inf")).logsumexp(-1, keepdim=True)
        parts.append(torch.cat([log_probs.gather(-1, kept), rest], -1))
    return torch.cat(parts).reshape(*shape, -1)


def _log_probs(logits: Tensor) -> Tensor:
    return (logits.float() if logits.device.type == "mps" else logits.double()).log_softmax(-1)


def mean_by_family(kl: Tensor, families: Sequence[str]) -> dict[str, float]:
    """Mean over the pairs of each family."""
    return {
        name: float(kl[[i for i, f in enumerate(families) if f == name]].mean()) for name in dict.fromkeys(families)
    }
