"""Pairs laid out for the model: left-padded, and cut where they begin to differ: what they share runs once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from headwatch.attribution.metrics import Reads
from headwatch.probes import ProbeSet


@dataclass(frozen=True)
class Span:
    """One pair's real tokens up to its last read position, as columns of the probe set.

    Nothing after the last read position can change the metric, because attention is causal.
    """

    pair: int
    start: int
    stop: int
    first_needed: int

    @property
    def length(self) -> int:
        """Tokens that count."""
        return self.stop - self.start

    @property
    def suffix(self) -> int:
        """Tokens from the first difference on, or the first read position: what is before is the same in every run."""
        return self.stop - self.first_needed


@dataclass(frozen=True)
class Batch:
    """B pairs, left-padded to T columns, of which the first C are the same in the clean and the corrupted prompt.

    Attributes:
        pairs: which pairs of the probe set these are, in this order, [B].
        clean, corrupted: token ids, [B, T].
        mask: 1 where a token is real, [B, T].
        positions: position ids, [B, T]; 0 at the padding.
        cut: C. Columns before it are run once, without gradients, into a key/value cache.
        read_columns: where the metric is read, counted within the last `keep` columns, [B, P].
        keep: how many columns at the end have logits.
        reads: what is read there.
    """

    pairs: Tensor
    clean: Tensor
    corrupted: Tensor
    mask: Tensor
    positions: Tensor
    cut: int
    read_columns: Tensor
    keep: int
    reads: Reads

    @property
    def size(self) -> int:
        """B."""
        return len(self.pairs)

    def pick_reads(self, logits: Tensor) -> Tensor:
        """Logits of the last `keep` columns, for runs of the whole batch one after the other -> [rows, P, V]."""
        columns = self.read_columns.repeat(len(logits) // self.size, 1)
        return logits[torch.arange(len(logits), device=logits.device)[:, None], columns]


def spans(probes: ProbeSet) -> list[Span]:
    """Every pair's span."""
    out = []
    differs = (probes.clean != probes.corrupted) & probes.attention_mask.bool()
    for pair in range(len(probes)):
        start, reads = int(probes.attention_mask[pair].argmax()), probes.read_positions[pair]
        first = min(int(differs[pair].int().argmax()), int(reads[reads >= 0].min()))
        out.append(Span(pair, start, int(reads.max()) + 1, first))
    return out


def batches(
    probes: ProbeSet, size: int, device: torch.device, reuse_prefix: bool = True, pad: bool = True
) -> Iterator[Batch]:
    """Cut a probe set into batches of at most `size` pairs, similar ones together so that little is padding.

    With pad=False only pairs of the same shape share a batch. Float64 models need that: eager attention computes its
    softmax in float32 (transformers 5.23), where float64's most negative number is -inf, and a padding row, in which
    everything is masked, becomes NaN.
    """
    ordered = sorted(spans(probes), key=lambda span: (span.suffix, span.length, span.pair))
    for _, group in groupby(ordered, key=lambda span: None if pad else (span.suffix, span.length)):
        chosen = list(group)
        for first in range(0, len(chosen), size):
            yield _batch(probes, chosen[first : first + size], device, reuse_prefix)


def _batch(probes: ProbeSet, chosen: list[Span], device: torch.device, reuse_prefix: bool) -> Batch:
    length = max(span.length for span in chosen)
    pairs = torch.tensor([span.pair for span in chosen])
    clean = torch.zeros(len(chosen), length, dtype=torch.long)
    corrupted, mask = torch.zeros_like(clean), torch.zeros_like(clean)
    for row, span in enumerate(chosen):
        clean[row, -span.length :] = probes.clean[span.pair, span.start : span.stop]
        corrupted[row, -span.length :] = probes.corrupted[span.pair, span.start : span.stop]
        mask[row, -span.length :] = 1
    read = probes.read_positions[pairs]
    present = read >= 0
    from_end = torch.tensor([span.stop for span in chosen])[:, None] - torch.where(present, read, read[:, :1])
    keep = int(from_end.max())
    reads = Reads(probes.answers[pairs], probes.targets[pairs], present)
    return Batch(
        pairs=pairs,
        clean=clean.to(device),
        corrupted=corrupted.to(device),
        mask=mask.to(device),
        positions=(mask.cumsum(-1) - 1).clamp(min=0).to(device),
        cut=length - max(span.suffix for span in chosen) if reuse_prefix else 0,
        read_columns=(keep - from_end).to(device),
        keep=keep,
        reads=Reads(reads.answers.to(device), reads.targets.to(device), reads.present.to(device)),
    )
