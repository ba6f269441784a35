"""Integration points of the path; an endpoint that is also a point reuses that run."""

from dataclasses import dataclass
from typing import Literal

from headwatch.attribution.metrics import Metric, kl
from headwatch.errors import UserError

Endpoint = Literal["clean", "corrupted"]
ENDPOINTS: tuple[Endpoint, Endpoint] = ("clean", "corrupted")
MAX_STEPS = 1000  # each is a backward pass; the error of five points is about 1 %
ALPHA_RULES = ("midpoint", "right", "left", "clean", "ends")


def path_points(alphas: str, steps: int, metric_name: str) -> list[float]:
    """The alphas at which gradients are taken, each of weight 1/m: x(alpha) = corrupted + alpha (clean - corrupted).

    "midpoint" (k + 1/2)/m, "right" k/m for k = 1..m (the paper), "left" k/m for k = 0..m-1 (the reference
    implementation of EAP-IG), "clean" a single gradient at the clean run (plain attribution patching), "ends" one at
    the clean and one at the corrupted run, whatever `steps` is.

    Raises:
        UserError: an unknown rule, fewer than one step, or a rule whose only point is the clean run with "kl", whose
            gradient there is always zero.
    """
    if alphas not in ALPHA_RULES:
        raise UserError(f"alphas={alphas!r} is unknown; use one of {', '.join(ALPHA_RULES)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps={steps!r} must be a whole number of at least 1 (5 is the default)")
    if steps > MAX_STEPS:
        raise UserError(f"steps={str(steps)[:20]}: more than {MAX_STEPS} points of the path; 5 is the default")
    if alphas == "clean":
        if metric_name == "kl":
            raise UserError(
                'alphas="clean" with metric="kl" is identically zero, since the KL divergence has its minimum at the '
                'clean run; use alphas="midpoint" or metric="logit_diff"'
            )
        return [1.0]
    if alphas == "ends":
        return [1.0, 0.0]
    if alphas == "right" and steps == 1 and metric_name == "kl":
        raise UserError(
            'alphas="right" with steps=1 and metric="kl" is identically zero: its one point is the clean run, where '
            'the KL divergence has its minimum; use steps=5, or alphas="midpoint"'
        )
    shift = {"midpoint": 0.5, "right": 1.0, "left": 0.0}[alphas]
    return [(k + shift) / steps for k in range(steps)]


@dataclass(frozen=True)
class Path:
    """The points of the path at which gradients are taken; each has weight 1 / steps.

    Attributes:
        points: alphas; those that are endpoints come first.
        steps: m. One more than there are points if the KL divergence has a point at its minimum, where the gradient is
            zero.
        endpoints: the endpoints that are the first points, in this order ("right" and "clean": clean; "left":
            corrupted; "ends": clean and corrupted, under "kl" corrupted; "midpoint": none).
    """

    points: list[float]
    steps: int
    endpoints: tuple[Endpoint, ...]

    @classmethod
    def of(cls, alphas: str, steps: int, metric_name: str, metric: Metric) -> "Path":
        """The path of a rule; see `path_points` for the rules and the errors."""
        points = path_points(alphas, steps, metric_name)
        needed = [alpha for alpha in points if not (metric is kl and alpha == 1.0)]
        at: dict[float, Endpoint] = {1.0: "clean", 0.0: "corrupted"}
        first = [alpha for alpha in at if alpha in needed]
        return cls([*first, *(a for a in needed if a not in at)], len(points), tuple(at[alpha] for alpha in first))
