"""Pairs per batch and points of the path per forward pass, within the memory budget."""

from typing import Any

from torch import nn

from headwatch.attribution.batching import spans
from headwatch.attribution.run_layout import should_pack
from headwatch.model.anatomy import Anatomy
from headwatch.model.whole_weights import trainable_bytes
from headwatch.probes import ProbeSet

GIB = 2**30
MIN_BUDGET_GB = 2.0


def default_budget_gb(model: nn.Module) -> float:
    """The size of the trainable parameters' gradients on this device, and at least 2 GiB, in GiB.

    A training step needs this memory and a probe runs between steps, so within this budget it does not raise the peak.
    The budget depends only on the model: batches have the same shapes at every probe, and equal weights equal scores.
    """
    return budget_gb(trainable_bytes(model))


def budget_gb(gradient_bytes: int) -> float:
    """`default_budget_gb` from the bytes of the trainable parameters that this device holds."""
    return max(MIN_BUDGET_GB, gradient_bytes / GIB)


def batch_sizes(
    anatomy: Anatomy,
    probes: ProbeSet,
    points: int,
    batch_size: int | None,
    memory_budget_gb: float | None,
    reuse_prefix: bool = True,
) -> tuple[int, int]:
    """Choose batches that stay within the memory budget.

    Estimate, in floats. Per token after the prefix: 12 M + 5 (width of the MLP) per layer and point, kept by autograd,
    and S M per pair for the sources' differences. Per token of the prefix: keys and values of all query heads and of
    the key/value heads, per layer, and per point if each has its own copy. docs/evidence/performance.md compares the
    estimate with measurements.

    Args:
        anatomy: the model.
        probes: all pairs.
        points: points of the path.
        batch_size, memory_budget_gb: see `ScoringSettings`.
        reuse_prefix: whether shared prefixes run once.

    Returns:
        Pairs per batch, and points of the path per forward pass.
    """
    if batch_size is not None:
        return batch_size, points
    if memory_budget_gb is None:
        memory_budget_gb = default_budget_gb(anatomy.model)
    like = next(anatomy.model.parameters())
    config: Any = getattr(anatomy.model, "config", None)
    masked = getattr(config, "_attn_implementation", None) in (
        "eager",
        "sdpa",
    )  # others receive no mask, and runs cannot be packed
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = getattr(config, "intermediate_size", None) or 4 * anatomy.d_model
    cached = 2 * (anatomy.n_heads + anatomy.n_kv_heads) * anatomy.head_dim

    def need(prefix: int, tokens: int, points: int) -> int:
        """Bytes per pair."""
        copies = 1 if masked and should_pack(prefix, tokens, points) else points
        kept = points * tokens * (12 * anatomy.d_model + 5 * hidden) + copies * prefix * cached
        return anatomy.n_layers * like.element_size() * kept + tokens * len(anatomy.sources) * anatomy.d_model * 4

    shapes = {(s.length - s.suffix, s.suffix) if reuse_prefix else (0, s.length) for s in spans(probes)}
    tokens = max(tokens for _, tokens in shapes)
    shapes.add((max(map(sum, shapes)) - tokens, tokens))  # a batch of all shapes, padded
    budget = memory_budget_gb * GIB
    pairs = int(budget // max(need(*shape, points) for shape in shapes))
    if pairs >= 1:
        return min(pairs, len(probes)), points
    fitting = (n for n in range(points, 1, -1) if max(need(*shape, n) for shape in shapes) <= budget)
    return 1, next(fitting, 1)
