"""The targets of edges in blocks, each of which is multiplied with the sources in one product."""

from itertools import chain

import torch

from headwatch.attribution.transfers import on_device
from headwatch.model.anatomy import Anatomy

# Number of targets multiplied with the sources in one product. With fewer, reading the sources dominates: on
# SmolLM2-135M, with 28 targets per layer, one layer at a time ran at 40 GFLOP/s and four at 70 (dev/log.md).
TARGETS_AT_ONCE = 100


class EdgeBlocks:
    """The targets of a model by block, and what is needed on the device to put a block's scores in their places.

    Wave w contains the targets that read the input and the first w layers: the attention of layer w and the MLP of
    layer w - 1 (of layer w if the two are parallel); the last wave contains the logits. A block of successive waves is
    multiplied with all sources of its last wave in one product, in which edges that do not exist are set to zero.

    Args:
        anatomy: the model.
        device: of the scores.

    Attributes:
        targets: numbers of the targets, by block.
        place: block and row of each target.
        most_targets: of the largest block.
        columns: `targets` on the device, int64 tensors.
        no_edge: which edges do not exist, bool [S, R] on the device.
    """

    def __init__(self, anatomy: Anatomy, device: torch.device) -> None:
        self._anatomy = anatomy
        n_layers = anatomy.n_layers
        waves: list[list[int]] = [[] for _ in range(n_layers + 1)]
        for index, layer in enumerate(anatomy.layers):
            waves[index] += [] if layer.whole else self._of_attention(index)
            waves[index if layer.parallel else index + 1].append(anatomy.mlp_target(index))
        waves[-1].append(len(anatomy.targets) - 1)
        at_once = max(1, round(TARGETS_AT_ONCE / (3 * anatomy.n_heads + 1)))
        starts = range(0, n_layers + 1, at_once)
        self._last_wave = [min(first + at_once - 1, n_layers) for first in starts]
        self.targets = [list(chain(*waves[first : first + at_once])) for first in starts]
        self.place = {target: (b, row) for b, block in enumerate(self.targets) for row, target in enumerate(block)}
        self.most_targets = max(map(len, self.targets))
        self.columns = [on_device(block, device) for block in self.targets]
        self.no_edge = on_device(~anatomy.is_real(), device)

    def n_sources(self, block: int) -> int:
        """Number of sources before the last wave of a block: the input, and the layers that it reads."""
        return 1 + self._last_wave[block] * (self._anatomy.n_heads + 1)

    def _of_attention(self, index: int) -> list[int]:
        """Targets of one layer's attention in the order of their rows in a block: all q, all k, all v."""
        first = self._anatomy.attention_targets(index).start
        return [first + 3 * head + place for place in range(3) for head in range(self._anatomy.n_heads)]
