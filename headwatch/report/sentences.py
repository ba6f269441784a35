"""What a run says in plain words: the headline, the summary of each family, the alerts. No more than was tested."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from headwatch.lives.history import HeadHistory
from headwatch.lives.states import NEWLY_ACTIVE, OF_BASE, is_in
from headwatch.record.run_folder import RunFolder
from headwatch.report.figure_data import changes
from headwatch.stats import OK


def headline(history: HeadHistory) -> str:
    """What happened, in one or two sentences that claim no more than was tested."""
    if not history.steps:
        return "No probe has been taken yet."
    step, about = history.steps[-1], f" on {history.family}" if history.family else ""
    counts = {label: values[-1] for label, values in history.counts().items()}
    newly, base = history.newly_active()[-1], int(is_in(history.state[-1], OF_BASE).sum())
    kept = counts["base"] + counts["retained"]
    if history.rule == "circuit":
        if len(history.steps) == 1:
            return f"The base circuit{about} has {_n(base, 'head')}. No training step has been probed yet."
        return (
            f"By membership alone{about}, {_n(newly, 'head')} newly active and {kept} of {base} base heads retained "
            f"at step {step:,}. Nothing is tested here."
        )
    if history.base_step is None:
        return (
            f"Insufficient signal{about}: clean and corrupted prompts score too much alike to say anything about heads."
        )
    if history.signal[-1] != OK:
        return (
            f"Insufficient signal{about} at step {step:,}: clean and corrupted prompts score too much alike. "
            f"What is shown is the last probe that had one."
        )
    if sum(said == OK for said in history.signal) == 1:
        return f"{_n(base, 'head')} of {history.n_layers * history.n_heads} carry the base model’s work{about}. " + (
            "No training step has been probed yet."
            if len(history.steps) == 1
            else "No later probe to compare with yet."
        )
    parts = [f"{_n(newly, 'head')} emerged" if newly else "", f"{counts['dropped']} of {base} base heads were dropped"]
    parts = [part for part in (parts[0], parts[1] if counts["dropped"] else "") if part]
    gone = counts["pruned"]
    tail = f" {_n(gone, 'head')} that had emerged {'is' if gone == 1 else 'are'} gone again." if gone else ""
    if counts["dropped"] == 1:
        parts[-1] = f"1 of {base} base heads was dropped"
    if parts:
        return f"{' and '.join(parts)}{about} by step {step:,}.{tail}"
    moved = sum(values[-1] for values in changes(history).values())
    whose = "its" if moved == 1 else "their"
    shifted = f", though {_n(moved, 'head')} changed {whose} share of the work" if moved else ""
    return f"No head has emerged and no base head was dropped{about} by step {step:,}{shifted}.{tail}"


def summary(
    history: HeadHistory,
    circuit: HeadHistory | None = None,
    accuracy: Sequence[float | None] = (),
    chance: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """One family in plain words: family, status, and sentences that each stand on a test or say that they do not.

    history: by the evidence rule. circuit: the same family by the paper's rule, where the run has circuits. accuracy:
    [P] in [0, 1] or None. chance: the null band of the paper's rule, (low, high) membership changes between two halves
    of the last probe's pairs, where the run recorded it. status: "ok", "insufficient signal" (now, or at every probe),
    "base only" or "no probe".
    """
    told = [index for index, said in enumerate(history.signal) if said == OK]
    said: list[str] = []
    if not history.steps:
        status = "no probe"
    elif not told or history.signal[-1] != OK:
        status = "insufficient signal"
        at = f"at step {history.steps[-1]:,}" if told else "at every probe so far"
        said.append(
            f"Insufficient signal {at}: the model tells clean and corrupted prompts apart too little for shares "
            "to be defined. Nothing is said about its heads."
        )
    elif len(told) == 1:
        status = "base only"
        active = int(history.active[-1].sum())
        said.append(
            f"{active} of {history.n_layers * history.n_heads} heads carry the base model’s work; "
            "there is no later probe to compare with yet."
        )
    else:
        status = OK
        said += [_moved(history), _lives(history), _pending(history), _set_changes(history)]
    if status in (OK, "base only"):
        said.append(_resolved(history))
    if circuit is not None and len(circuit.steps) > 1:
        said.append(_by_circuit(circuit, chance))
    said.append(_task(history, accuracy))
    return {"family": history.family, "status": status, "sentences": [sentence for sentence in said if sentence]}


def alerts(run: RunFolder) -> list[dict[str, Any]]:
    """The run's alerts (alerts.jsonl), one a kind and family: text, family ("" for all), level, first, last, now.

    text: the latest. first, last: steps at which it was raised. now: it was raised at the last probe. level: "warning"
    or "status". A line that cannot be read is left out.
    """
    last = run.steps[-1] if run.steps else None
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in run.alerts():
        if "text" not in row:
            continue
        step, text, family = row["step"], str(row["text"]), str(row.get("family") or "")
        kind, level = str(row.get("kind") or text), str(row.get("level") or "warning")
        alert = found.setdefault((kind, family), {"family": family, "first": step})
        alert |= {"text": text, "level": level, "last": step, "now": step == last}
    return list(found.values())


# --- sentences ------------------------------------------------------------------------------------------------------


def _moved(history: HeadHistory) -> str:
    moved = changes(history)
    up, down = moved["strengthened"][-1], moved["weakened"][-1]
    tested = history.n_layers * history.n_heads
    if not up and not down:
        return f"None of {tested} heads changed its share of the work significantly and materially since the base."
    return (
        f"{_n(up, 'head')} strengthened and {down} weakened since the base (of {tested} heads; significant, "
        f"q ≤ {history.settings.q:g}, and material)."
    )


def _resolved(history: HeadHistory) -> str:
    """How far the pairs can see."""
    active, resolved, wanted = int(history.active[-1].sum()), history.n_detectable()[-1], history.pairs_needed()
    pairs = history.n_pairs or 0
    if not active:
        return ""
    more = f"; about {wanted:,} pairs would do for nine in ten" if wanted is not None and wanted > pairs else ""
    return f"On these {pairs} pairs the loss of {resolved} of the {_n(active, 'active head')} would be told{more}."


def _lives(history: HeadHistory) -> str:
    newly = is_in(history.state, NEWLY_ACTIVE)
    ever, now = newly.any(axis=0), newly[-1]
    gaps = np.diff(newly.astype(np.int8), axis=0) < 0
    fresh = int((now & ~newly[:-1].any(axis=0)).sum())  # nothing is known yet of whether these stay
    stayed = int((now & ~gaps.any(axis=0)).sum()) - fresh
    back, gone = int(now.sum()) - stayed - fresh, int((ever & ~now).sum())
    parts = [
        f"{stayed} emerged and stayed" if stayed else "",
        f"{fresh} emerged at the last probe" if fresh else "",
        f"{back} emerged, went and came back" if back else "",
        f"{gone} emerged and went again" if gone else "",
    ]
    base = int(is_in(history.state[-1], OF_BASE).sum())
    dropped = history.counts()["dropped"][-1]
    lost = f"{dropped} of {base} base heads {'was' if dropped == 1 else 'were'} dropped" if dropped else ""
    if not ever.any():
        return f"No head emerged; {lost or f'none of {base} base heads was dropped'}."
    return f"{', '.join(part for part in parts if part)}; {lost or f'all {base} base heads were kept'}."


def _pending(history: HeadHistory) -> str:
    """Events that the next probe has yet to see again, where the history asks for that."""
    waiting = sum(getattr(event, "status", "") == "pending" for event in history.events)
    return (
        f"{_n(waiting, 'event')} of the last probe wait{'s' if waiting == 1 else ''} for the next to confirm."
        if waiting
        else ""
    )


def _set_changes(history: HeadHistory) -> str:
    changed, base = history.membership_changes()[-1], history.steps.index(history.base_step or history.steps[0])
    band = history.null_band[-1] if history.null_band else None
    if band is None or base == len(history.steps) - 1:
        return ""
    return (
        f"Membership of the active set alone changed by {changed}; two samples of one probe’s pairs differ by "
        f"{band.low:.0f} to {band.high:.0f}, so that is {_beside(changed, band.high)}."
    )


def _by_circuit(circuit: HeadHistory, chance: tuple[float, float] | None) -> str:
    newly, gone = circuit.newly_active()[-1], circuit.counts()["dropped"][-1]
    beside = ""
    if chance is not None:
        low, high = chance
        beside = (
            f", {_beside(newly + gone, high)}: two halves of one probe’s pairs differ by "
            f"{_whole(low)} to {_whole(high)}"
        )
    return (
        f"The paper’s membership count changed by {newly + gone} ({newly} newly active, {_n(gone, 'base head')} gone)"
        f"{beside}; membership is not tested."
    )


def _beside(changed: int, high: float) -> str:
    return "within its own null band" if changed <= high else "more than its own null band"


def _whole(count: float) -> str:
    return f"{count:.3g}"


def _task(history: HeadHistory, accuracy: Sequence[float | None]) -> str:
    told = [index for index, said in enumerate(history.signal) if said == OK]
    parts = []
    known = [value for value in accuracy if value is not None]
    if len(known) > 1:
        parts.append(f"probe accuracy {known[0]:.0%} → {known[-1]:.0%}".replace("%", " %"))
    if len(told) > 1:
        gap = history.metric_gap
        parts.append(f"metric gap {abs(gap[told[0]]):.3g} → {abs(gap[told[-1]]):.3g}")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _n(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
