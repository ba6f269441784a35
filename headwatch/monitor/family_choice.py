"""Choose probe families when the user named none: a look at a few pairs of every built-in family, forward only.

A family is worth a probe if the metric differs between the clean and the corrupted prompts on this model. Small base
models have no signal on `addition`, for example, and every later probe of it would report nothing.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwatch.attribution.batching import Batch, batches
from headwatch.attribution.metrics import Metric, resolve_metric
from headwatch.errors import UserError
from headwatch.io.plain_json import plain
from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call, callers_autocast
from headwatch.model.read_only import read_only_pass
from headwatch.model.whole_weights import whole_weights
from headwatch.monitor.console import listed, progress_bar
from headwatch.monitor.distributed import on_main
from headwatch.probes import ProbeSet
from headwatch.probes.resolve import DEFAULT_FAMILIES
from headwatch.record.run_folder import RunFolder
from headwatch.stats.shares import gap_t

logger = logging.getLogger(__name__)

LOOK_PAIRS = 12  # of each family
MARGIN = 1.5  # of the t that is expected with all pairs, over the t that a probe requires
BATCH_SIZE = 12
CONTROL = "recall"  # the family without arithmetic
ARITHMETIC = ("addition", "sums", "carry", "linear_equation", "word_problem")  # the first with signal is taken
TRY = "Name other pairs: probes='openers', or a file of your own (docs/reference/probes.md)."


@dataclass(frozen=True)
class Look:
    """Result of a few pairs of a family.

    Attributes:
        family: its name.
        gap: mean of the metric, corrupted minus clean.
        t: of that gap over the pairs, as expected with as many pairs as a probe has.
        accuracy: fraction of the clean prompts that the model answers correctly.
        has_signal: whether |t| exceeds what a probe requires, with a margin.
    """

    family: str
    gap: float
    t: float
    accuracy: float
    has_signal: bool


@dataclass(frozen=True)
class FamilyChoice:
    """The chosen families, and the look at all of them, for the manifest; `looks` is empty if none could be taken."""

    families: tuple[str, ...]
    looks: tuple[Look, ...] = ()

    @property
    def line(self) -> str:
        """One line for the console."""
        chosen = listed(self.families)
        weak = [look.family for look in self.looks if not look.has_signal]
        if len(weak) == len(self.looks):
            return f"probes: {chosen}, but no built-in family has signal on this model yet. {TRY}"
        without = f" (no signal on: {', '.join(weak)})" if weak else ""
        verb = "has" if len(self.families) == 1 else "have"
        return f"probes: none were named; {chosen} chosen, which {verb} signal on this model{without}"

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        values: dict[str, Any] = plain({"pairs": LOOK_PAIRS, "families": [asdict(look) for look in self.looks]})
        return values


def choose_families(
    tokenizer: Any,
    model: nn.Module,
    metric: str | Metric,
    n_pairs: int,
    min_gap_t: float,
    seed: int = 0,
    optimizer: object | None = None,
    resumed: RunFolder | None = None,
    shows_bar: bool = False,
) -> FamilyChoice:
    """The families to probe on this model, the same on every process; every process must call this.

    The first arithmetic family with signal, and the control if it has signal; the two clearest ones if none has any.

    Args:
        tokenizer: the trainer's.
        model: at the start of training.
        metric: of the probes.
        n_pairs: pairs per family of a probe.
        min_gap_t: see `EvidenceSettings`.
        seed: of the pairs.
        optimizer: the trainer's; needed under ZeRO-3 only.
        resumed: the record of a resumed run, on the main process; its families are taken again.
        shows_bar: whether a look of more than two seconds has a progress bar.
    """
    recorded = on_main(lambda: None if resumed is None else resumed.families)
    if recorded is not None:
        return FamilyChoice(tuple(recorded))

    def choose() -> FamilyChoice:
        looks: list[Look] = []
        families = (CONTROL, *ARITHMETIC)
        with progress_bar("headwatch looks at probe families", len(families), "family", shows_bar) as bar:
            for family in families:
                look = look_at(family, tokenizer, model, metric, n_pairs, min_gap_t, seed, optimizer)
                looks += [] if look is None else [look]
                bar.update()
                if look is not None and look.has_signal and family != CONTROL:
                    break
        return FamilyChoice(ranked(looks), tuple(looks))

    # Whole weights are gathered by all processes, so that the main one can look alone; layer by layer all look.
    with whole_weights(model, optimizer, Anatomy.of(model).decoder_layers) as whole:
        found: FamilyChoice = on_main(choose) if whole else choose()
    return found


def ranked(looks: Sequence[Look]) -> tuple[str, ...]:
    """The families with signal, the control last; if none has any, the two of largest |t|.

    >>> weak, good = Look("addition", -0.02, -1.0, 0.0, False), Look("sums", -3.0, -9.0, 0.5, True)
    >>> ranked([Look("recall", -6.0, -20.0, 0.9, True), weak, good])
    ('sums', 'recall')
    """
    good = [look.family for look in looks if look.has_signal]
    if not good:
        by_size = sorted(looks, key=lambda look: -abs(look.t))
        return tuple(look.family for look in by_size[:2]) or DEFAULT_FAMILIES
    return tuple(sorted(good, key=lambda family: family == CONTROL))


def look_at(
    family: str,
    tokenizer: Any,
    model: nn.Module,
    metric: str | Metric = "logit_diff",
    n_pairs: int = 64,
    min_gap_t: float = 4.0,
    seed: int = 0,
    optimizer: object | None = None,
    look_pairs: int = LOOK_PAIRS,
) -> Look | None:
    """Run a few pairs of a family; None if the tokenizer cannot align it. The model is not changed.

    Args:
        family, tokenizer, model, metric, n_pairs, min_gap_t, seed, optimizer: see `choose_families`.
        look_pairs: pairs to run.
    """
    try:
        probes = ProbeSet.generate(family, tokenizer, look_pairs, seed)
    except UserError as error:
        logger.debug("headwatch: family %s is left out: %s", family, error)
        return None
    like = next(model.parameters())
    with read_only_pass(model, optimizer), callers_autocast(Anatomy.of(model).model, like.device) as call:
        clean, corrupted, correct = _read(call, probes, resolve_metric(metric)[1], like)
    t = gap_t(clean.numpy(), corrupted.numpy()) * (n_pairs / look_pairs) ** 0.5
    gap, accuracy = float((corrupted - clean).mean()), float(correct.float().mean())
    return Look(family, gap, t, accuracy, bool(abs(t) >= MARGIN * min_gap_t))


@torch.no_grad()
def _read(call: Call, probes: ProbeSet, metric: Metric, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Metric of the clean and of the corrupted prompts, and whether the clean answers are right, [N] each."""
    clean, corrupted = torch.zeros(len(probes)), torch.zeros(len(probes))
    correct = torch.zeros(len(probes), dtype=torch.bool)
    for batch in batches(probes, BATCH_SIZE, like.device, reuse_prefix=False, pad=like.dtype != torch.float64):
        own, other = _logits(call, batch, batch.clean), _logits(call, batch, batch.corrupted)
        clean[batch.pairs] = metric(own, own, batch.reads).float().cpu()
        corrupted[batch.pairs] = metric(other, own, batch.reads).float().cpu()
        correct[batch.pairs] = batch.reads.correct(own).cpu()
    return clean, corrupted, correct


def _logits(call: Call, batch: Batch, ids: Tensor) -> Tensor:
    """Logits at the read positions, [B, P, V]."""
    padded = bool((batch.mask == 0).any())
    out = call(
        input_ids=ids,
        attention_mask=batch.mask if padded else None,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=batch.keep,
    )
    return batch.pick_reads(out.logits[None, :, -batch.keep :])[0].float()
