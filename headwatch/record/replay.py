"""A history read back from a run folder, by going through its probes once more."""

import os

from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.stats import EvidenceSettings


def history_from_run(
    folder: str | os.PathLike[str] | RunFolder,
    family: str | None = None,
    rule: str = "evidence",
    settings: EvidenceSettings | None = None,
) -> HeadHistory:
    """The history of one family of a run folder (or of the trainer's output_dir that contains it).

    Args:
        folder: the run folder, or its path.
        family: None is the first.
        rule: "evidence" or "circuit".
        settings: None takes those of the manifest (settings.evidence), else the defaults.

    Raises:
        UserError: the folder is not a run folder, or holds no such family or rule.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
    manifest = run.manifest
    if not run.families:
        raise UserError(f"{run.path / 'manifest.json'} names no probe family (probes.families)")
    family = run.families[0] if family is None else family
    pairs = run.pairs_of(family)
    settings = settings or EvidenceSettings.from_dict((manifest.get("settings") or {}).get("evidence") or {})
    model = manifest["model"]
    history = HeadHistory(model["n_layers"], model["n_heads"], rule=rule, settings=settings, family=family)
    for step in run.steps:
        scores = run.read_scores(step)
        if rule == "evidence":
            history.add(step, scores.head_scores[pairs], scores.metric_clean[pairs], scores.metric_corrupted[pairs])
            continue
        if scores.circuit_active is None or scores.importance is None:
            raise UserError(
                f"{run.path} holds no circuit at step {step}: the run scored heads only; take rule='evidence'"
            )
        index = run.families.index(family)
        stability = None if scores.circuit_stability is None else scores.circuit_stability[index]
        draws = None if scores.importance_draws is None else scores.importance_draws[index]
        history.add_membership(step, scores.circuit_active[index], scores.importance[index], stability, draws)
    return history


# The public entry, HeadHistory.from_run: lives/ knows no run folder, so it is attached here.
HeadHistory.from_run = staticmethod(history_from_run)
