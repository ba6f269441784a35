"""How many pairs and points of the path share a run, so that a probe stays within its memory; and what it took."""

from typing import Any

from torch import nn

from headwatch.attribution.batching import spans
from headwatch.attribution.run_layout import lie_beside
from headwatch.errors import UserError
from headwatch.model.anatomy import Anatomy
from headwatch.probes import ProbeSet

GIB = 2**30
LEAST_BUDGET_GB = 2.0


def default_budget_gb(model: nn.Module) -> float:
    """What a training step needs in any case: a gradient for each trainable parameter, and 2 GiB at least, in GiB.

    A probe comes between steps, when no gradient is held, so that within this budget it takes no more than the step
    does. The budget depends on the model alone: batches then have the same shape at every probe, and equal weights
    equal scores.
    """
    return budget_gb(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))


def budget_gb(trainable_bytes: int) -> float:
    """The same, in GiB, from the bytes of the trainable parameters."""
    return max(LEAST_BUDGET_GB, trainable_bytes / GIB)


def batch_sizes(
    anatomy: Anatomy,
    probes: ProbeSet,
    points: int,
    batch_size: int | None,
    memory_budget_gb: float | None,
    reuse_prefix: bool = True,
) -> tuple[int, int]:
    """Pairs a batch and points of the path at once, so that one batch stays within the memory budget.

    The estimate, in floats: for a token after the prefix 12 M + 5 (width of the MLP) a layer that autograd keeps of
    each interpolated run, and S M for the sources' differences, once a pair; for a token of the prefix keys and values
    of all query heads, and of the key/value heads once more, a layer, and a run where each has its own copy.
    docs/evidence/performance.md holds it against what was measured.
    """
    if batch_size is not None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r} must be a whole number of at least 1, or None")
        return batch_size, points
    if memory_budget_gb is None:
        memory_budget_gb = default_budget_gb(anatomy.model)
    if not memory_budget_gb > 0:
        raise UserError(
            f"memory_budget_gb={memory_budget_gb!r} must be above 0; None (the default) allows what the trainable "
            "parameters' gradients take, and 2 GiB at least"
        )
    like = next(anatomy.model.parameters())
    config: Any = getattr(anatomy.model, "config", None)
    masked = getattr(config, "_attn_implementation", None) in ("eager", "sdpa")  # else runs cannot lie side by side
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = getattr(config, "intermediate_size", None) or 4 * anatomy.d_model
    cached = 2 * (anatomy.n_heads + anatomy.n_kv_heads) * anatomy.head_dim

    def need(prefix: int, tokens: int, points: int) -> int:
        """Bytes a pair."""
        copies = 1 if masked and lie_beside(prefix, tokens, points) else points
        kept = points * tokens * (12 * anatomy.d_model + 5 * hidden) + copies * prefix * cached
        return anatomy.n_layers * like.element_size() * kept + tokens * len(anatomy.sources) * anatomy.d_model * 4

    shapes = {(s.length - s.suffix, s.suffix) if reuse_prefix else (0, s.length) for s in spans(probes)}
    tokens = max(tokens for _, tokens in shapes)
    shapes.add((max(map(sum, shapes)) - tokens, tokens))  # where pairs of all shapes share a batch
    budget = memory_budget_gb * GIB
    pairs = int(budget // max(need(*shape, points) for shape in shapes))
    if pairs >= 1:
        return min(pairs, len(probes)), points
    fitting = (n for n in range(points, 1, -1) if max(need(*shape, n) for shape in shapes) <= budget)
    return 1, next(fitting, 1)
