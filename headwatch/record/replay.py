"""A history rebuilt from a run folder, probe by probe."""

import os
import warnings
from collections.abc import Collection, Mapping
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
    manifest = run.manifest
    if not run.families:
        raise UserError(f"{run.path / 'manifest.json'} names no probe family (probes.families)")
    family = run.families[0] if family is None else family
    pairs, index = run.pairs_of(family), run.families.index(family)
    settings = settings or EvidenceSettings.from_dict((manifest.get("settings") or {}).get("evidence") or {})
    model = manifest["model"]
    history = HeadHistory(model["n_layers"], model["n_heads"], rule=rule, settings=settings, family=family)
    found, lost = run.probes()
    if lost:
        warnings.warn(lost_probes(found, lost), stacklevel=2)
    for step, scores in found.items():
        if rule == "evidence":
            metric = scores.metric_clean[pairs], scores.metric_corrupted[pairs]
            history.add(step, scores.head_scores[pairs], *metric)
            if scores.patched is not None:
                history.add_patched(scores.patched[pairs], *metric)
        else:
            history.add_membership(step, *_membership(run, step, scores, index))
    return history


def lost_probes(found: Collection[int], lost: Mapping[int, str]) -> str:
    """One line on probes that cannot be read; states then start from a later probe if the base is among them."""
    steps, first = ", ".join(map(str, lost)), min(found, default=None)
    what = f"step {steps}" if len(lost) == 1 else f"steps {steps}"
    base = f"; the base is lost, so states are relative to step {first}" if found and min(lost) < min(found) else ""
    return f"the probe of {what} cannot be read{base} ({next(iter(lost.values()))})"


def _membership(run: RunFolder, step: int, scores: ProbeScores, index: int) -> tuple[Any, ...]:
    """(active, importance, stability or None, importance draws or None) of the family at this index, [L, H] each."""
    if scores.circuit_active is None or scores.importance is None:
        raise UserError(f"{run.path} holds no circuit at step {step}: the run scored heads only; use rule='evidence'")
    optional = (scores.circuit_stability, scores.importance_draws)
    return scores.circuit_active[index], scores.importance[index], *(a if a is None else a[index] for a in optional)


# Attached here because lives/ is below record/ and must not import it.
HeadHistory.from_run = staticmethod(history_from_run)
