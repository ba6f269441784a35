"""Sentences of the report: headline, summary of each family, coupling with the reward, alerts.

A sentence claims no more than was tested, or says that nothing was tested.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.lives.exact_patching import CONTRADICTS, LEVEL, SUPPORTS
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import NEWLY_ACTIVE, OF_BASE, HeadState, is_in
from headwatch.model.head_names import Head, head_name
from headwatch.record.run_folder import RunFolder
from headwatch.report.figure_data import changes, has_signal, is_finite_number
from headwatch.stats import OK

COUPLING_KEYS = ("reward",)
MAX_NAMES = 3  # heads that a sentence names


def headline(history: HeadHistory) -> str:
    """What happened to the heads by the last probe, in one or two sentences."""
    if not history.steps:
        return "No probe has been taken yet."
    if history.rule == "circuit":
        return _circuit_headline(history)
    step, on_family = history.steps[-1], _on_family(history)
    if history.base_step is None:
        return (
            f"Insufficient signal{on_family}: the metric differs too little between clean and corrupted prompts to "
            "measure heads."
        )
    if history.signal[-1] != OK:
        return (
            f"Insufficient signal{on_family} at step {step:,}: the metric differs too little between clean and "
            "corrupted prompts. The figures show the last probe with signal."
        )
    if sum(has_signal(history)) == 1:
        missing = "No training step has been probed" if len(history.steps) == 1 else "No later probe to compare with"
        return f"{_active_in_base(history)}{on_family}. {missing} yet."
    return _events_headline(history)


def summary(
    history: HeadHistory,
    circuit: HeadHistory | None = None,
    accuracy: Sequence[float | None] = (),
    null_band: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """One family at its last probe.

    Args:
        history: by the evidence rule.
        circuit: the same family by the circuit rule, where the run has circuits.
        accuracy: of the probe answers, [P] in [0, 1] or None.
        null_band: of the circuit rule, (low, high) membership changes between two halves of the last probe's pairs.

    Returns:
        family; status ("ok", "insufficient signal", "base only" or "no probe"); line: the result in a few words;
        weight: how much there is to report, to compare families; sentences.
    """
    status = _status(history)
    sentences: list[str] = []
    if status == "insufficient signal":
        when = f"at step {history.steps[-1]:,}" if any(has_signal(history)) else "at every probe so far"
        sentences.append(
            f"Insufficient signal {when}: the metric differs too little between clean and corrupted prompts to define "
            "shares. Heads are not evaluated."
        )
    elif status == "base only":
        sentences.append(f"{_active_in_base(history)}; there is no later probe to compare with yet.")
    elif status == OK:
        sentences += [
            _changed_shares(history),
            _lives(history),
            _pending(history),
            _patching(history),
            _membership(history),
        ]
    if status in (OK, "base only"):
        sentences.insert(0, _strongest(history))
        sentences.append(_detection_power(history))
    if circuit is not None and len(circuit.steps) > 1:
        sentences.append(_circuit_membership(circuit, null_band))
    sentences.append(_task(history, accuracy))
    line, weight = _line(history, status, accuracy)
    found = [text for text in sentences if text]
    return {"family": history.family, "status": status, "line": line, "weight": weight, "sentences": found}


def coupling(history: HeadHistory, training: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rank correlation of newly active heads with each of COUPLING_KEYS that the trainer logged, one sentence each."""
    rows = [dict(row) for row in training]
    logged = [key for key in COUPLING_KEYS if any(is_finite_number(row.get(key)) for row in rows)]
    return [_coupling(history, rows, key) for key in logged]


def alerts(run: RunFolder) -> list[dict[str, Any]]:
    """The run's alerts, the latest of each kind and family.

    Returns:
        kind; text, without the family's name; family ("" for all); level ("warning" or "status"); first, last: steps at
        which it was raised; now: whether it was raised at the last probe.
    """
    last = run.steps[-1] if run.steps else None
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in run.alerts():
        text, step, family = str(row.get("text") or ""), row["step"], str(row.get("family") or "")
        alert = found.setdefault((str(row.get("kind") or text), family), {"family": family, "first": step})
        alert |= {
            "kind": str(row.get("kind") or ""),
            "text": text.removeprefix(f"{family}: "),
            "level": str(row.get("level") or "warning"),
        }
        alert |= {"last": step, "now": step == last}
    return [alert for alert in found.values() if alert["text"]]


# --- headline ---------------------------------------------------------------------------------------------------------


def _circuit_headline(history: HeadHistory) -> str:
    on_family, base = _on_family(history), _n_base(history)
    if len(history.steps) == 1:
        return f"The base circuit{on_family} has {_count(base, 'head')}. No training step has been probed yet."
    counts = history.counts()
    retained = counts["base"][-1] + counts["retained"][-1]
    return (
        f"By circuit membership{on_family}, {_count(history.newly_active()[-1], 'head')} newly active and {retained} "
        f"of {base} base heads retained at step {history.steps[-1]:,}. Membership is not tested."
    )


def _events_headline(history: HeadHistory) -> str:
    until = f"{_on_family(history)} by step {history.steps[-1]:,}"
    newly, dropped, pruned = history.newly_active()[-1], _dropped(history), history.counts()["pruned"][-1]
    parts = [f"{_count(newly, 'head')} emerged" if newly else "", dropped]
    if any(parts):
        heads = _count(pruned, "more head" if newly else "head")
        tail = f" {heads} emerged and {_was(pruned)} pruned." if pruned else ""
        return f"{' and '.join(part for part in parts if part)}{until}.{tail}"
    if pruned:
        return f"{_count(pruned, 'head')} emerged and {_was(pruned)} pruned{until}."
    changed = history.strengthened[-1] | history.weakened[-1]
    heads = f"{_count(int(changed.sum()), 'head')}{_named(history, changed)}"
    shifted = f", though the share of {heads} changed significantly and materially" if changed.any() else ""
    return f"No head has emerged and no base head was dropped{until}{shifted}."


# --- summary ----------------------------------------------------------------------------------------------------------


def _status(history: HeadHistory) -> str:
    signal = has_signal(history)
    if not signal:
        return "no probe"
    if not signal[-1]:
        return "insufficient signal"
    return "base only" if sum(signal) == 1 else OK


def _line(history: HeadHistory, status: str, accuracy: Sequence[float | None]) -> tuple[str, int]:
    """The family in a few words, and how much there is to report: signal, then events, changed shares, active heads."""
    if status == "no probe":
        return "no probe yet", 0
    if status == "insufficient signal":
        when = f" at step {history.steps[-1]:,}" if any(has_signal(history)) else ""
        return f"insufficient signal{when}, no result", 0
    active = int(history.active[-1].sum())
    if status == "base only":
        return f"{_count(active, 'active head')} in the base model", 1 + active
    newly, pruned = history.newly_active()[-1], history.counts()["pruned"][-1]
    dropped = _dropped(history).replace(" were ", " ").replace(" was ", " ")
    parts = [
        f"{newly} emerged{_names(history, NEWLY_ACTIVE)}" if newly else "",
        f"{pruned} emerged and pruned{_names(history, (HeadState.PRUNED,))}" if pruned else "",
        dropped + _names(history, (HeadState.DROPPED,)) if dropped else "",
    ]
    known = [value for value in accuracy if value is not None]
    if len(known) > 1:
        parts.append(f"accuracy {known[0]:.0%} → {known[-1]:.0%}".replace("%", "\u00a0%"))
    changed = int((history.strengthened[-1] | history.weakened[-1]).sum())
    if not (newly or pruned or _dropped(history)):
        shares = f", {_count(changed, 'changed share')}" if changed else ""
        parts.insert(0, f"no event, {_count(active, 'active head')}{shares}")
    weight = 1_000_000 * (1 + len(history.events)) + 1_000 * changed + active
    return "; ".join(part for part in parts if part), weight


def _strongest(history: HeadHistory) -> str:
    """The heads with the largest |share| now."""
    shares, names = history.share[-1], _by_share(history, history.has_head)[:MAX_NAMES]
    if not names:
        return ""
    parts = (f"{head_name(*head)} {_percent(float(shares[head]))}" for head in names)
    return f"Largest shares of the metric gap: {', '.join(parts)}."


def _names(history: HeadHistory, states: tuple[HeadState, ...]) -> str:
    return _named(history, is_in(history.state[-1], states))


def _named(history: HeadHistory, chosen: NDArray[np.bool_]) -> str:
    """The chosen heads, the largest |share| first: " (L0.H4, L2.H1, L2.H6 and 2 more)"."""
    heads = _by_share(history, chosen)
    more = f" and {len(heads) - MAX_NAMES} more" if len(heads) > MAX_NAMES else ""
    return f" ({', '.join(head_name(*head) for head in heads[:MAX_NAMES])}{more})"


def _by_share(history: HeadHistory, chosen: NDArray[np.bool_]) -> list[Head]:
    """The chosen heads, the largest |share| at the last probe first."""
    size = np.where(np.isfinite(history.share[-1]), np.abs(history.share[-1]), 0.0)
    heads = [(int(layer), int(head)) for layer, head in np.argwhere(chosen)]
    return sorted(heads, key=lambda head: -float(size[head]))


def _percent(share: float) -> str:
    """As on the page: one decimal below 10 %."""
    return f"{100 * share:.{1 if abs(share) < 0.0995 else 0}f} %".replace("-", "−").replace(" ", "\u00a0")


def _changed_shares(history: HeadHistory) -> str:
    up, down = (values[-1] for values in changes(history).values())
    tested = history.total_heads
    if not up and not down:
        return (
            f"None of {tested} heads changed its share of the metric gap significantly and materially since the base."
        )
    return (
        f"{_count(up, 'head')} strengthened and {down} weakened since the base (of {tested} heads; significant at "
        f"q\u00a0≤\u00a0{history.settings.q:g}, and material)."
    )


def _lives(history: HeadHistory) -> str:
    newly = is_in(history.state, NEWLY_ACTIVE)
    ever, now = newly.any(axis=0), newly[-1]
    interrupted = (np.diff(newly.astype(np.int8), axis=0) < 0).any(axis=0)
    new = int((now & ~newly[:-1].any(axis=0)).sum())  # whether these stay is not known yet
    stayed = int((now & ~interrupted).sum()) - new
    counts = {
        "stayed active": stayed,
        "new at the last probe": new,
        "pruned and re-emerged": int(now.sum()) - stayed - new,
        "pruned": int((ever & ~now).sum()),
    }
    total = int(ever.sum())
    parts = ", ".join(f"{'all' if n == total > 1 else n} {what}" for what, n in counts.items() if n)
    emerged = f"{_count(total, 'head')} emerged ({parts})" if parts else "No head emerged"
    return f"{emerged}; {_dropped(history) or f'none of {_n_base(history)} base heads was dropped'}."


def _pending(history: HeadHistory) -> str:
    n = len(history.pending)
    return f"{_count(n, 'event')} of the last probe await{'s' if n == 1 else ''} confirmation by the next." if n else ""


def _patching(history: HeadHistory) -> str:
    verdicts = [event.patching for event in history.events if event.patching is not None]
    if not verdicts:
        return ""
    n, against, supported = len(verdicts), verdicts.count(CONTRADICTS), verdicts.count(SUPPORTS)
    return (
        f"Exact patching of the heads of {_count(n, 'event')}: the effect of {n - against} has the sign of the event "
        f"({supported} with a significant paired change, p\u00a0≤\u00a0{LEVEL:g}), {against} "
        f"contradict{'s' if against == 1 else ''} it."
    )


def _membership(history: HeadHistory) -> str:
    n, base = history.membership_changes()[-1], history.steps.index(history.base_step or history.steps[0])
    band = history.null_band[-1] if history.null_band else None
    if band is None or base == len(history.steps) - 1:
        return ""
    return (
        f"Membership of the active set changed for {_count(n, 'head')}, {_against_band(n, band.high)} "
        f"({band.low:.0f} to {band.high:.0f} between two samples of one probe’s pairs)."
    )


def _detection_power(history: HeadHistory) -> str:
    active, needed, pairs = int(history.active[-1].sum()), history.pairs_needed(), history.n_pairs or 0
    if not active:
        return ""
    more = f"; {needed:,} would cover nine in ten" if needed is not None and needed > pairs else ""
    return (
        f"Detection power: the loss of {history.n_detectable()[-1]} of the {_count(active, 'active head')} would be "
        f"detected ({pairs} pairs{more})."
    )


def _circuit_membership(circuit: HeadHistory, null_band: tuple[float, float] | None) -> str:
    newly, dropped = circuit.newly_active()[-1], circuit.counts()["dropped"][-1]
    n = newly + dropped
    against = ""
    if null_band is not None:
        low, high = null_band
        against = f", {_against_band(n, high)} ({low:.3g} to {high:.3g} between two halves of one probe’s pairs)"
    return (
        f"The paper’s circuit membership changed for {_count(n, 'head')} ({newly} newly active, "
        f"{_count(dropped, 'base head')} dropped){against}; membership is not tested."
    )


def _task(history: HeadHistory, accuracy: Sequence[float | None]) -> str:
    known = [value for value in accuracy if value is not None]
    gap = [abs(value) for value, signal in zip(history.metric_gap, has_signal(history), strict=True) if signal]
    parts = []
    if len(known) > 1:
        parts.append(f"probe accuracy {known[0]:.0%} → {known[-1]:.0%}".replace("%", " %"))
    if len(gap) > 1:
        parts.append(f"metric gap {gap[0]:.3g} → {gap[-1]:.3g}")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


# --- parts ------------------------------------------------------------------------------------------------------------


def _coupling(history: HeadHistory, rows: list[dict[str, Any]], key: str) -> str:
    found = history.coupling(rows, key)
    n = len(found.steps)
    if math.isnan(found.rho):
        why = "3 are needed" if n < 3 else "one of the two never changes"
        levels = f"no correlation over {_count(n, 'probe')}: {why}."
    else:
        levels = f"rank correlation {_signed(found.rho)} over {n} probes"
        if not math.isnan(found.rho_changes):
            levels += (
                f"; of the changes between probes, which a common trend does not inflate, {_signed(found.rho_changes)}"
            )
        levels += "."
    test = found.lagged().describe("newly active heads", key)
    return f"Newly active heads and {key}: {levels} Lagged test of the changes: {test}"


def _active_in_base(history: HeadHistory) -> str:
    n = int(history.active[-1].sum())
    return f"{n} of {history.total_heads} heads {'is' if n == 1 else 'are'} active in the base model"


def _n_base(history: HeadHistory) -> int:
    return int(is_in(history.state[-1], OF_BASE).sum())


def _dropped(history: HeadHistory) -> str:
    n = history.counts()["dropped"][-1]
    return f"{n} of {_n_base(history)} base heads {_was(n)} dropped" if n else ""


def _on_family(history: HeadHistory) -> str:
    return f" on {history.family}" if history.family else ""


def _against_band(n: int, high: float) -> str:
    return f"{'within' if n <= high else 'above'} its null band"


def _was(n: int) -> str:
    return "was" if n == 1 else "were"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
