"""Does a layout describe a model? The fast pass against the naive reference, on two pairs, in float64.

For an unknown model type, `diagnose` tries Llama's entry, an entry guessed from the names of the modules, and the other
entries.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.attribution.naive import naive_edges
from headwatch.attribution.scores import EdgeScores
from headwatch.attribution.scoring import score_edges
from headwatch.attribution.wiring import wiring_problem
from headwatch.errors import NonFiniteError, UserError
from headwatch.model.anatomy import Anatomy
from headwatch.model.guess import guessed_layouts
from headwatch.model.layouts import LAYOUTS, REFUSED, Layout, registered
from headwatch.model.precision import KeepFloat64
from headwatch.probes import ProbeSet

LIMIT = 1e-7  # largest accepted error of an edge over the largest edge; a wrong entry is off by percents
PAIRS, TOKENS, POINTS = 2, 9, 2


@dataclass(frozen=True)
class Trial:
    """One layout entry, compared with the naive reference.

    Attributes:
        layout: the entry.
        error: largest error of an edge over the largest edge; None if the scores could not be computed.
        stream: the stream check's error.
        row_sums: the row-sum check's error.
        problem: what does not fit, in one line; None if it fits.
    """

    layout: Layout
    error: float | None = None
    stream: float | None = None
    row_sums: float | None = None
    problem: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the entry describes the model."""
        return self.problem is None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "layout": entry(self.layout), "fits": self.fits}


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about one model.

    Attributes:
        model_type: its `config.model_type`.
        supported: whether `LAYOUTS` has an entry for it.
        refused: why the type is refused, if it is known to be.
        trials: the entries that were tried; the last one is the best.
    """

    model_type: str
    supported: bool
    refused: str | None
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The entry that fits, or the one that comes closest."""
        return self.trials[-1]


def diagnose(model: nn.Module) -> Diagnosis:
    """Compare a float64 model with its layout entry, or find an entry for its type.

    Args:
        model: a Hugging Face causal language model in float64, small enough for the naive reference.
    """
    model_type = str(getattr(getattr(model, "config", None), "model_type", None))
    known = LAYOUTS.get(model_type)
    tried: list[Trial] = []
    for layout in [known] if known is not None else _candidates(model):
        tried.append(trial(model, model_type, layout))
        if tried[-1].fits:
            break
    tried.reverse()  # of equals, the first one tried is the best
    tried.sort(key=lambda each: (each.fits, each.error is not None, -(each.error or 0.0), _found(each)))
    return Diagnosis(model_type, known is not None, REFUSED.get(model_type), tuple(tried))


def trial(model: nn.Module, model_type: str, layout: Layout) -> Trial:
    """Run the fast pass and the naive reference with one layout entry."""
    probes = _pairs(model)
    try:
        with registered(model_type, layout), KeepFloat64():
            fast = score_edges(model, probes, steps=POINTS)
            exact = naive_edges(model, probes, steps=POINTS)
            wiring = wiring_problem(Anatomy.of(model), probes.clean[:1])
    except (UserError, NonFiniteError) as caught:
        return Trial(layout, problem=str(caught).removeprefix("model: "))
    except Exception as caught:  # another architecture fails in its own way
        return Trial(layout, problem=f"{type(caught).__name__}: {' '.join(str(caught).split())[:200]}")
    largest = float(exact.abs().max())
    error = float((fast.per_pair - exact).abs().max()) / largest if largest else float("nan")
    checks = fast.checks
    problem = None
    if not error <= LIMIT:
        problem = f"edge scores differ from the naive reference by {error:.1%} of the largest, {_where(fast, exact)}"
    elif not checks.stream <= LIMIT:
        problem = f"the sources do not add up to the residual stream (off by {checks.stream:.1e})"
    elif wiring is not None:
        problem = f"another order of heads: {wiring}"
    return Trial(layout, error, checks.stream, checks.row_sums, problem)


def entry(layout: Layout) -> str:
    """A layout as code: only what differs from Llama's."""
    own = [
        (each.name, getattr(layout, each.name)) for each in fields(Layout) if getattr(layout, each.name) != each.default
    ]
    return f"Layout({', '.join(f'{name}={value!r}' for name, value in own)})"


def _candidates(model: nn.Module) -> Iterator[Layout]:
    seen: list[Layout] = []
    for layout in (Layout(), *guessed_layouts(model), *LAYOUTS.values()):
        if layout not in seen:
            seen.append(layout)
            yield layout


def _found(each: Trial) -> int:
    """Of entries without an error: one whose parts were all found comes closer than one with missing parts."""
    return int("should have" not in (each.problem or ""))


def _where(fast: EdgeScores, exact: Tensor) -> str:
    """The edge with the largest error."""
    errors = (fast.per_pair - exact).abs().amax(0)
    source, target = divmod(int(errors.argmax()), errors.shape[1])
    return f"most at the edge from {fast.sources[source]} to {fast.targets[target]}"


def _pairs(model: nn.Module) -> ProbeSet:
    """Two random pairs, one with a short and one with a long shared prefix."""
    config: Any = model.config
    size = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(3, size, (PAIRS, TOKENS), generator=generator)
    corrupted = clean.clone()
    for row, first in enumerate((1, TOKENS - 3)):
        corrupted[row, first:] = (clean[row, first:] + 1 + row - 3) % (size - 3) + 3
    answers = torch.stack([torch.randperm(size, generator=generator)[:2] for _ in range(PAIRS)])
    return ProbeSet.from_token_ids(clean, corrupted, answers=answers)
