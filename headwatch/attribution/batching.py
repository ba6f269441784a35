"""Pairs laid out for the model: left-padded, and cut where they begin to differ: what they share runs once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby

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
        """Logits at the read positions, of n runs' last `keep` columns: [n, B, keep, V] -> [n, B, P, V]."""
        return logits[:, torch.arange(self.size, device=logits.device)[:, None], self.read_columns]


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
    shapes = [list(same) for _, same in groupby(ordered, key=lambda span: (span.suffix, span.length))]
    for chosen in together(shapes, size, device) if pad else shapes:
        count = math.ceil(len(chosen) / size)
        at_once = math.ceil(len(chosen) / count)  # as even as they can be: what is left over would be a small batch
        for first in range(0, len(chosen), at_once):
            yield _batch(probes, chosen[first : first + at_once], device, reuse_prefix)


# What a batch costs beside its tokens, in tokens of a pair after the prefix. On the CPU a pass over the demo's model
# took 33 ms a batch and 0.6 ms a token (dev/log.md); on a GPU, busy with a token for much less time, not measured.
TOKENS_A_BATCH = 64
TOKENS_A_BATCH_ELSEWHERE = 1024


def together(shapes: list[list[Span]], size: int, device: torch.device) -> list[list[Span]]:
    """Which pairs of one shape after the other (by suffix, then length) had better share batches: the cheapest way.

    Sharing pads all to the longest suffix and the longest prefix; every batch more has its own price. A token of the
    prefix is counted as a twelfth: it runs forward once; others for two ends, and forward and backward for five points.
    """
    price = TOKENS_A_BATCH if device.type == "cpu" else TOKENS_A_BATCH_ELSEWHERE

    def cost(first: int, stop: int) -> float:
        pairs = sum(map(len, shapes[first:stop]))
        suffix = shapes[stop - 1][0].suffix
        prefix = max(same[0].length for same in shapes[first:stop]) - suffix
        return math.ceil(pairs / size) * price + pairs * (suffix + prefix / 12)

    # Of the first so many shapes: their cost, and where the last group begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(shapes) + 1):
        best.append(min((best[first][0] + cost(first, stop), first) for first in range(stop)))
    groups: list[list[Span]] = []
    stop = len(shapes)
    while stop:
        first = best[stop][1]
        groups.insert(0, list(chain(*shapes[first:stop])))
        stop = first
    return groups


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
