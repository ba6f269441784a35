"""Batches of pairs: left-padded, and cut at the first difference, because the shared prefix runs once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor

from headwatch.attribution.metrics import Reads
from headwatch.attribution.transfers import on_device
from headwatch.probes import ProbeSet


@dataclass(frozen=True)
class Span:
    """One pair's tokens up to its last read position; attention is causal, so later ones cannot change the metric.

    Attributes:
        pair: its number in the probe set.
        start, stop: columns of the probe set.
        first_needed: column of the first difference or the first read position, whichever is earlier.
        read_columns: number of columns from the first read position on.
    """

    pair: int
    start: int
    stop: int
    first_needed: int
    read_columns: int = 1

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    @property
    def suffix(self) -> int:
        """Number of tokens from `first_needed` on; those before it are the same in every run."""
        return self.stop - self.first_needed


@dataclass(frozen=True)
class Batch:
    """B pairs, left-padded to T columns, the first C of which are equal in the clean and the corrupted prompt.

    Attributes:
        pairs: their numbers in the probe set, [B].
        clean, corrupted: token ids, [B, T].
        mask: 1 for tokens, 0 for padding, [B, T].
        positions: position ids, [B, T]; 0 for padding.
        cut: C. Earlier columns run once, without gradients, and fill a key/value cache.
        read_columns: read positions, relative to the last `keep` columns, [B, P].
        keep: number of last columns with logits.
        reads: what the metric compares with at the read positions.
        padded: whether any row has padding.
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
    padded: bool

    @property
    def size(self) -> int:
        """B."""
        return len(self.pairs)

    def pick_reads(self, logits: Tensor) -> Tensor:
        """Select the read positions from the last `keep` columns of n runs: [n, B, keep, V] -> [n, B, P, V]."""
        return logits[:, torch.arange(self.size, device=logits.device)[:, None], self.read_columns]


def spans(probes: ProbeSet) -> list[Span]:
    """The span of every pair."""
    out = []
    differs = (probes.clean != probes.corrupted) & probes.attention_mask.bool()
    for pair in range(len(probes)):
        start, reads = int(probes.attention_mask[pair].argmax()), probes.read_positions[pair]
        stop, read = int(reads.max()) + 1, int(reads[reads >= 0].min())
        out.append(Span(pair, start, stop, min(int(differs[pair].int().argmax()), read), stop - read))
    return out


def batches(
    probes: ProbeSet, size: int, device: torch.device, reuse_prefix: bool = True, pad: bool = True
) -> Iterator[Batch]:
    """Divide a probe set into batches of at most `size` pairs, similar pairs together to limit padding.

    Args:
        probes: the pairs.
        size: pairs per batch, at most.
        device: the model's device.
        reuse_prefix: cut batches at the first difference.
        pad: False gives pairs of different shapes different batches. Float64 models require it: eager attention
            computes its softmax in float32 (transformers 5.23), where float64's most negative number is -inf, and a
            fully masked padding row becomes NaN.
    """
    ordered = sorted(spans(probes), key=lambda span: (span.suffix, span.length, span.pair))
    shapes = [list(same) for _, same in groupby(ordered, key=lambda span: (span.suffix, span.length))]
    for chosen in cheapest_groups(shapes, size, device) if pad else shapes:
        count = math.ceil(len(chosen) / size)
        at_once = math.ceil(len(chosen) / count)  # as even as possible
        for first in range(0, len(chosen), at_once):
            yield _batch(probes, chosen[first : first + at_once], device, reuse_prefix)


# Fixed cost of a batch, in suffix tokens of a pair. On the CPU a pass over the demo's model took 33 ms per batch and
# 0.6 ms per token (dev/log.md); the value for other devices, where a token takes much less time, is not measured.
BATCH_COST_CPU = 64
BATCH_COST_ELSEWHERE = 1024


def cheapest_groups(shapes: list[list[Span]], size: int, device: torch.device) -> list[list[Span]]:
    """Group same-shape buckets into padded batches at minimal cost (dynamic programming).

    A group is padded to its longest suffix and its longest prefix, and each batch adds a fixed cost. A prefix token
    costs a twelfth of a suffix token: one forward pass, against those of two endpoints and five points with backward.

    Args:
        shapes: pairs by shape, sorted by suffix, then length.
        size: pairs per batch, at most.
        device: the model's device.
    """
    price = BATCH_COST_CPU if device.type == "cpu" else BATCH_COST_ELSEWHERE

    def cost(first: int, stop: int) -> float:
        pairs = sum(map(len, shapes[first:stop]))
        suffix = shapes[stop - 1][0].suffix
        prefix = max(same[0].length for same in shapes[first:stop]) - suffix
        return math.ceil(pairs / size) * price + pairs * (suffix + prefix / 12)

    # For every number of shapes: the lowest cost of the first so many, and the beginning of their last group.
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

    def put(values: Tensor) -> Tensor:
        return on_device(values, device)

    return Batch(
        pairs=pairs,
        clean=put(clean),
        corrupted=put(corrupted),
        mask=put(mask),
        positions=put((mask.cumsum(-1) - 1).clamp(min=0)),
        cut=length - max(span.suffix for span in chosen) if reuse_prefix else 0,
        read_columns=put(keep - from_end),
        keep=keep,
        reads=Reads(put(probes.answers[pairs]), put(probes.targets[pairs]), put(present)),
        padded=min(span.length for span in chosen) < length,
    )
