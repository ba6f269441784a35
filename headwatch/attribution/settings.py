"""The settings of an attribution pass."""

from dataclasses import dataclass

from headwatch.attribution.metrics import Metric, resolve_metric
from headwatch.attribution.path import path_points
from headwatch.errors import UserError
from headwatch.kernels.launch import check_kernels


@dataclass(frozen=True)
class ScoringSettings:
    """What a pass computes, and in what batches.

    Attributes:
        metric: "logit_diff", "kl", "nll", or a callable (`headwatch.attribution.Metric`).
        steps: m, the points of the path; ignored by alphas="clean" and "ends".
        alphas: "midpoint", "right" (the paper), "left", "clean" (plain attribution patching), or "ends"
            (the clean and the corrupted run; see docs/evidence/scores.md).
        edges: also score edges, which the paper's circuit rule needs; False scores heads only.
        batch_size: pairs per batch; None derives it from the memory budget.
        memory_budget_gb: estimated size of one batch's activations and differences, in GiB; None allows the size of the
            trainable parameters' gradients, and at least 2 GiB; on CUDA more, where memory is free (batch_size.py).
        kernels: fused Triton kernels: "auto" (in a training on CUDA, those that agree with plain PyTorch and are faster
            on the first batch; elsewhere none), "torch" (none) or "triton" (all; CUDA only).
        cuda_graphs: in a training on CUDA, repeat batches whose shape was seen before as CUDA graphs. Faster where
            batches are small; a graph keeps the memory of its batch from probe to probe (graphs.py).

    Raises:
        UserError: a value is out of range or unknown.
    """

    metric: str | Metric = "logit_diff"
    steps: int = 5
    alphas: str = "midpoint"
    edges: bool = True
    batch_size: int | None = None
    memory_budget_gb: float | None = None
    kernels: str = "auto"
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        path_points(self.alphas, self.steps, self.metric_name)
        check_kernels(self.kernels)
        size, budget = self.batch_size, self.memory_budget_gb
        for name in ("edges", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)!r} must be True or False")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise UserError(f"batch_size={size!r} must be a whole number of at least 1, or None")
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0):
            raise UserError(
                f"memory_budget_gb={budget!r} must be a number above 0; None (the default) allows the size of the "
                "trainable parameters' gradients, and at least 2 GiB"
            )

    @property
    def metric_name(self) -> str:
        """The metric's name; of a callable its __name__."""
        return resolve_metric(self.metric)[0]
