"""How a probe's heads and edges are scored: the options of score_heads and score_edges, as one object."""

from dataclasses import dataclass

from headwatch.attribution.metrics import Metric, path_points, resolve_metric
from headwatch.errors import UserError


@dataclass(frozen=True)
class ScoringSettings:
    """How the heads and edges of a probe are scored.

    Attributes:
        metric: "logit_diff", "kl", "nll", or a callable; the family "openers" has its own.
        steps: points of the integrated-gradients path.
        alphas: "midpoint", "right" (the paper), "left" or "clean".
        edges: also score edges, which the paper's circuit rule needs; False scores heads only.
        batch_size: pairs per batch; None chooses it by the memory budget.
        memory_budget_gb: memory of one batch, in GiB; None allows what the trainable parameters' gradients take.

    Raises:
        UserError: a value makes no sense.
    """

    metric: str | Metric = "logit_diff"
    steps: int = 5
    alphas: str = "midpoint"
    edges: bool = True
    batch_size: int | None = None
    memory_budget_gb: float | None = None

    def __post_init__(self) -> None:
        path_points(self.alphas, self.steps, self.metric_name)
        if not isinstance(self.edges, bool):
            raise UserError(f"edges={self.edges!r} must be True or False")
        if self.batch_size is not None and (isinstance(self.batch_size, bool) or self.batch_size < 1):
            raise UserError(f"batch_size={self.batch_size!r} must be a whole number of at least 1, or None")
        if self.memory_budget_gb is not None and not self.memory_budget_gb > 0:
            raise UserError(f"memory_budget_gb={self.memory_budget_gb!r} must be above 0, or None")

    @property
    def metric_name(self) -> str:
        """The metric's name; of a callable its own."""
        return resolve_metric(self.metric)[0]
