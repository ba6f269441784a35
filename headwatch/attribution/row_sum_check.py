"""Row-sum check: are the edges of every head in sum its head score?

Head scores are taken from autograd at the heads' outputs. Edges are expanded with the norms' and projections' weights
that the layout names. If it names the wrong kind of norm, or a weight that is not applied as it says, the two disagree:
by 2 % to 60 % of the largest head score in random models, against 1e-7 in float32 where the layout is right. In 16 bits
the scores of an untrained model are themselves mostly rounding, so there the error is logged and nothing is refused
(docs/evidence/reliability.md).
"""

import torch
from torch import Tensor

from headwatch.attribution.transfers import on_device
from headwatch.errors import UnsupportedModelError
from headwatch.model.anatomy import Anatomy
from headwatch.model.whole_weights import readable

_LIMIT = 0.01  # largest accepted error over the largest head score, in float32 and float64


@torch.no_grad()
def row_sum_error(anatomy: Anatomy, heads: Tensor, edges: Tensor) -> float:
    """Largest |row sum of the edges - head score| over the largest |head score|.

    Args:
        anatomy: the model.
        heads: head scores, [B, L, H].
        edges: edge scores, [B, S, R].
    """
    sources = [anatomy.head_source(layer) for layer in range(anatomy.n_layers)]
    rows = torch.cat([edges[:, source] for source in sources], 1).sum(-1)
    heads = on_device(heads, edges.device)
    largest, error = torch.stack([heads.abs().max(), (rows - heads.flatten(1)).abs().max()]).tolist()
    return error / largest if largest else error


def check_row_sums(anatomy: Anatomy, heads: Tensor, edges: Tensor, autocast: bool) -> None:
    """Refuse a model whose layout entry does not describe its norms or projections; in 16 bits do nothing.

    Args:
        anatomy: the model.
        heads: head scores of a batch, [B, L, H].
        edges: its edge scores, [B, S, R].
        autocast: whether the model runs under autocast, in 16 bits.

    Raises:
        UnsupportedModelError: the error is far beyond rounding.
    """
    with readable(anatomy.first_with_heads.out):
        dtypes = {p.dtype for p in anatomy.first_with_heads.out.parameters()}
    if autocast or not dtypes <= {torch.float32, torch.float64}:
        return
    error = row_sum_error(anatomy, heads, edges)
    if error > _LIMIT:
        raise UnsupportedModelError(
            f"model: the edge scores of its heads do not add up to their head scores (off by {error:.1%} of the "
            "largest one), so edges would be wrong; its norms or projections differ from those of its model type"
        )
