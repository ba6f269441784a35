"""A history rebuilt from a run folder, probe by probe."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.run_folder import RunFolder
from headwatch.stats import EvidenceSettings


def history_from_run(
    folder: str | os.PathLike[str] | RunFolder,
    family: str | None = None,
    rule: str = "evidence",
    settings: EvidenceSettings | None = None,
) -> HeadHistory:
    """The history of one family of a run. Public as `HeadHistory.from_run`.

    Args:
        folder: the run folder or its path, or the trainer's output_dir that contains it.
        family: a probe family of the run; None is the first.
        rule: "evidence" or "circuit".
        settings: of the evidence rule; None takes those of the manifest, else the defaults.

    Raises:
        UserError: the folder is not a run folder, or has no such family or rule.

    >>> hw.HeadHistory.from_run("outputs/grpo", "addition").cohorts()        # doctest: +SKIP
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
    if not run.families:
        raise UserError(f"{run.path / 'manifest.json'} names no probe family (probes.families)")
    family = run.families[0] if family is None else family
    return histories_from_run(run, {family: (rule,)}, settings=settings)[family, rule]


def histories_from_run(
    run: RunFolder,
    rules: Mapping[str, Sequence[str]],
    correct: Callable[[str, Any], None] | None = None,
    settings: EvidenceSettings | None = None,
    lost: dict[int, str] | None = None,
) -> dict[tuple[str, str], HeadHistory]:
    """Histories of several families and rules; each probe's file is read once.

    Args:
        run: the run folder.
        rules: family -> the rules to follow, "evidence" and "circuit".
        correct: called with each family and its pairs' `correct` at every probe (None where it was not recorded).
        settings: of the evidence rule; None takes those of the manifest, else the defaults.
        lost: receives the probes that cannot be read, step -> reason; None warns of them.

    Returns:
        (family, rule) -> history.
    """
    manifest, names = run.manifest, run.families
    settings = settings or EvidenceSettings.from_dict((manifest.get("settings") or {}).get("evidence") or {})
    model = manifest["model"]
    shape, layers = (model["n_layers"], model["n_heads"]), model.get("layers_with_heads")
    pairs = {family: run.pairs_of(family) for family in rules}
    histories = {
        (family, rule): HeadHistory(*shape, rule=rule, settings=settings, family=family, layers=layers)
        for family, own in rules.items()
        for rule in own
    }
    missing: dict[int, str] = {}
    for step, scores in run.probes():
        if isinstance(scores, str):
            missing[step] = scores
            continue
        for (family, rule), history in histories.items():
            rows = pairs[family]
            if rule == "evidence":
                metric = scores.metric_clean[rows], scores.metric_corrupted[rows]
                history.add(step, scores.head_scores[rows], *metric)
                if scores.patched is not None:
                    history.add_patched(scores.patched[rows], *metric)
            else:
                history.add_membership(step, *_membership(run, step, scores, names.index(family)))
        if correct is not None:
            for family, rows in pairs.items():
                correct(family, None if scores.correct is None else scores.correct[rows])
    if lost is not None:
        lost |= missing
    elif missing:
        warnings.warn(lost_probes(next(iter(histories.values())).steps, missing), stacklevel=2)
    return histories


def lost_probes(found: Iterable[int], lost: Mapping[int, str]) -> str:
    """One line on probes that cannot be read; states then start from a later probe if the base is among them."""
    steps, first = ", ".join(map(str, lost)), min(found, default=None)
    what = f"step {steps}" if len(lost) == 1 else f"steps {steps}"
    is_base_lost = first is not None and min(lost) < first
    base = f"; the base is lost, so states are relative to step {first}" if is_base_lost else ""
    return f"the probe of {what} cannot be read{base} ({next(iter(lost.values()))})"


def _membership(run: RunFolder, step: int, scores: ProbeScores, index: int) -> tuple[Any, ...]:
    """(active, importance, stability or None, importance draws or None) of the family at this index, [L, H] each."""
    if scores.circuit_active is None or scores.importance is None:
        raise UserError(f"{run.path} holds no circuit at step {step}: the run scored heads only; use rule='evidence'")
    optional = (scores.circuit_stability, scores.importance_draws)
    return scores.circuit_active[index], scores.importance[index], *(a if a is None else a[index] for a in optional)


# Attached here because lives/ is below record/ and must not import it.
HeadHistory.from_run = staticmethod(history_from_run)
