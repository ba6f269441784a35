"""Pairs per batch and points of the path per forward pass, within the memory budget."""

from collections.abc import Callable
from typing import Any

from torch import nn

from headwatch.attribution.batching import spans
from headwatch.attribution.run_layout import should_pack
from headwatch.model.anatomy import Anatomy
from headwatch.model.free_memory import free_cuda_bytes as free_bytes
from headwatch.model.whole_weights import trainable_bytes
from headwatch.probes import ProbeSet

GIB = 2**30
MIN_BUDGET_GB = 2.0
PART_OF_FREE = 0.5
PART_KEPT = 0.25  # where CUDA graphs keep it while the training runs
RESERVED_COPIES = 3  # of the trainable parameters: gradients and the two moments of Adam


def default_budget_gb(model: nn.Module, free: int | None = None, kept: bool = False) -> float:
    """The size of the trainable parameters' gradients on this device, and at least 2 GiB; on CUDA more, where memory is
    free. In GiB.

    A training step needs the memory of the gradients and a probe runs between steps, so within this budget it does not
    raise the peak. Small batches are bound by launches of kernels on a GPU, so there half of the memory is used that is
    free after setting aside gradients and two moments per trainable parameter, which a training may not have allocated
    yet. The budget must stay the same during a run: then batches have the same shapes at every probe, and equal weights
    equal scores.

    Args:
        model: the model.
        free: free bytes of its CUDA device (`free_bytes`), or None.
        kept: whether the training cannot use the memory between probes, because CUDA graphs keep it.
    """
    trainable = trainable_bytes(model)
    if free is None:
        return budget_gb(trainable)
    part = PART_KEPT if kept else PART_OF_FREE
    return max(budget_gb(trainable), part * (free - RESERVED_COPIES * trainable) / GIB)


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
    whole_vocabulary: bool = False,
) -> tuple[int, int]:
    """Choose batches that stay within the memory budget, by the estimate of `pair_bytes`.

    Args:
        anatomy: the model.
        probes: all pairs.
        points: points of the path.
        batch_size, memory_budget_gb: see `ScoringSettings`.
        reuse_prefix: whether shared prefixes run once.
        whole_vocabulary: whether the metric reads all logits ("kl" and "nll").

    Returns:
        Pairs per batch, and points of the path per forward pass.
    """
    if batch_size is not None:
        return batch_size, points
    if memory_budget_gb is None:
        device = next(anatomy.model.parameters()).device
        memory_budget_gb = default_budget_gb(anatomy.model, free_bytes(device))
    need = pair_bytes(anatomy, probes, reuse_prefix, whole_vocabulary)
    budget = memory_budget_gb * GIB
    pairs = int(budget // need(points))
    if pairs >= 1:
        return min(pairs, len(probes)), points
    return 1, next((n for n in range(points, 1, -1) if need(n) <= budget), 1)


def pair_bytes(
    anatomy: Anatomy, probes: ProbeSet, reuse_prefix: bool = True, whole_vocabulary: bool = False
) -> Callable[[int], int]:
    """An estimate of the memory that one pair takes in a batch, by the points of the path at once.

    In floats. Per token after the prefix: 12 M + 5 (width of the MLP) per layer and point, kept by autograd, and S M
    per pair for the sources' differences. Per token of the prefix: keys and values of all query heads and of the
    key/value heads, per layer, and per point if each has its own copy. Per column with logits and token of the
    vocabulary: both endpoints, and, if the metric reads all logits, per point two copies in the model's dtype and three
    in float32. docs/evidence/performance.md compares the estimate with measurements.

    Args:
        anatomy: the model.
        probes: all pairs.
        reuse_prefix, whole_vocabulary: see `batch_sizes`.
    """
    like = next(anatomy.model.parameters())
    config: Any = getattr(anatomy.model, "config", None)
    masked = getattr(config, "_attn_implementation", None) in (
        "eager",
        "sdpa",
    )  # others receive no mask, and runs cannot be packed
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = getattr(config, "intermediate_size", None) or 4 * anatomy.d_model
    vocabulary = getattr(config, "vocab_size", 0)
    columns = max(span.read_columns for span in spans(probes))
    cached = 2 * (anatomy.n_heads + anatomy.n_kv_heads) * anatomy.head_dim

    def need(prefix: int, tokens: int, points: int) -> int:
        """Bytes per pair."""
        copies = 1 if masked and should_pack(prefix, tokens, points) else points
        kept = points * tokens * (12 * anatomy.d_model + 5 * hidden) + copies * prefix * cached
        size = like.element_size()
        logits = columns * vocabulary * (2 * (size + 4) + (points * (2 * size + 12) if whole_vocabulary else 0))
        return anatomy.n_layers * size * kept + tokens * len(anatomy.sources) * anatomy.d_model * 4 + logits

    shapes = {(s.length - s.suffix, s.suffix) if reuse_prefix else (0, s.length) for s in spans(probes)}
    tokens = max(tokens for _, tokens in shapes)
    shapes.add((max(map(sum, shapes)) - tokens, tokens))  # a batch of all shapes, padded
    return lambda points: max(need(*shape, points) for shape in shapes)
