"""Which points of the path need a gradient, and which of them is a run that is needed anyway."""

from dataclasses import dataclass
from typing import Literal

from headwatch.attribution.metrics import Metric, kl, path_points

End = Literal["clean", "corrupted"]
ENDS: tuple[End, End] = ("clean", "corrupted")


@dataclass(frozen=True)
class Path:
    """The points of the path whose gradients are taken; each weighs 1 / steps.

    Attributes:
        points: alphas; one that is an end of the path comes first.
        steps: m, which may be one more than there are points: the gradient of a KL divergence at its minimum is zero.
        end: the end of which the first point is the run ("right" and "clean": clean; "left": corrupted), or None.
    """

    points: list[float]
    steps: int
    end: End | None

    @classmethod
    def of(cls, alphas: str, steps: int, metric_name: str, metric: Metric) -> "Path":
        """The path of a rule; see `path_points` for the rules and the errors."""
        points = path_points(alphas, steps, metric_name)
        wanted = [alpha for alpha in points if not (metric is kl and alpha == 1.0)]
        if 1.0 in wanted:
            return cls([1.0, *wanted[:-1]], len(points), "clean")
        return cls(wanted, len(points), "corrupted" if 0.0 in wanted else None)
