"""Every figure once, as plain JSON-able data; plotly_figures.py and report.py draw it. No drawing here, no styling.

Every function takes a HeadHistory (and what else it needs) and returns dicts of lists, numbers, strings and None: what
is not finite becomes None, numbers are rounded, nothing is a numpy type. L layers, H heads, P probes, K rows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwatch.history import HeadHistory
from headwatch.lives import ACTIVE, NEWLY_ACTIVE, OF_BASE, is_in

Figure = dict[str, Any]
Rows = Iterable[Mapping[str, Any]]

RULE_NAMES = {"evidence": "evidence rule", "circuit": "circuit rule (the paper's)"}
MAX_CURVE_POINTS = 240  # more logged values than this are averaged in bins: a strip is not wider than that in pixels
LIVE_CURVE_POINTS = 60  # for figures that are sent somewhere at every probe
COUPLING_KEYS = ("reward",)


def cohort_chart(history: HeadHistory) -> Figure:
    """The paper's figure A. steps [P]; newly_active, retained [P] counts; cohorts: [{step, active [P]}].

    newly_active: active heads that the base did not have; the cohorts, by step of first emergence, sum to it. retained:
    base heads that are still active. signal: [P] bool, False where the probe said "insufficient signal".
    """
    counts = history.counts()
    return {
        "steps": list(history.steps),
        "newly_active": history.newly_active(),
        "retained": [base + kept for base, kept in zip(counts["base"], counts["retained"], strict=True)],
        "cohorts": [{"step": int(step), "active": list(active)} for step, active in sorted(history.cohorts().items())],
        "signal": [said == "ok" for said in history.signal],
    }


def training_curves(training: Rows, max_points: int = MAX_CURVE_POINTS) -> dict[str, Figure]:
    """The paper's figure B: what the trainer logged, by name: "reward", "accuracy", "loss", where there is such a key.

    Each: key (as logged), steps, values, logs_a_point (1, or how many logs each point averages). Beside a reward the
    loss says nothing (GRPO's is about zero) and is left out.
    """
    rows = [dict(row) for row in training]
    keys = dict.fromkeys(key for row in rows for key in row if not key.startswith("eval_"))
    accuracy = [key for key in keys if "accuracy" in key and not key.endswith("/std")]
    wanted = {"reward": "reward", "accuracy": min(accuracy, key=len, default=None), "loss": "loss"}
    curves = {}
    for name, key in wanted.items():
        if key is None or (name == "loss" and "reward" in curves):
            continue
        points = [(int(row["step"]), float(row[key])) for row in rows if _is_number(row.get(key))]
        if points:
            curves[name] = {"key": key, **_binned(points, max_points)}
    return curves


def probe_curves(history: HeadHistory, correct: Sequence[float | None]) -> Figure:
    """How well the model does on the probes themselves, a signal that no reward shapes.

    accuracy: [P] in [0, 1], as given. gap: [P] mean distance between clean and corrupted prompts in the metric's units,
    counted positive in the base's direction. signal: [P] bool.
    """
    gaps = np.asarray(history.metric_gap, np.float64)
    told = gaps[np.isfinite(gaps) & (gaps != 0.0)]
    direction = float(np.sign(told[0])) if len(told) else 1.0
    return {
        "steps": list(history.steps),
        "accuracy": plain(np.array(correct, np.float64), 3),
        "gap": plain(direction * gaps, 3),
        "signal": [said == "ok" for said in history.signal],
    }


def activation_frequency(history: HeadHistory) -> Figure:
    """The paper's figure C. frequency: [L][H], part of all probes at which the head is active. base: heads of the base.

    active_now: heads active at the last probe. Heads are (layer, head).
    """
    state = history.state
    base = is_in(state, OF_BASE).any(axis=0)
    return {
        "step": history.steps[-1] if history.steps else None,
        "frequency": plain(history.activation_frequency(), 3),
        "base": _heads(base),
        "active_now": _heads(history.active[-1]) if history.steps else [],
    }


def effect_map(history: HeadHistory) -> Figure:
    """E(l, h) against the base, mean over the probes after it: effect [L][H] in [-1, 1], empty before there is one.

    measure says what the importance is: edge scores under the circuit rule, |share| under the evidence rule.
    """
    told = sum(said == "ok" for said in history.signal)
    measure = "summed |edge score|, the paper’s" if history.rule == "circuit" else "|share|"
    effect = history.effect() if told > 1 else np.zeros((0, 0))
    return {"step": history.steps[-1] if history.steps else None, "effect": plain(effect, 2), "measure": measure}


def life_raster(history: HeadHistory) -> Figure:
    """One row a head that was ever active or in the active set: heads [K], group [K], lives [K] strings of P signs.

    A sign is the HeadState's digit; where the active set itself disagrees (the head crossed its edge without evidence)
    it is the letter of the same number (a = 0 ... g = 6). group: "base", "joined" (emerged at some time), "crossed"
    (only ever in the set without evidence). Order: group, then first activity, layer, head.
    """
    state, member = history.state, history.member
    active = is_in(state, ACTIVE)
    present = active | member
    signs = np.where(active == member, state, state + ord("a") - ord("0")) + ord("0")
    rows = []
    for layer, head in np.argwhere(present.any(axis=0)) if history.steps else []:
        mine = state[:, layer, head]
        group = 0 if is_in(mine, OF_BASE).any() else 1 if is_in(mine, NEWLY_ACTIVE).any() else 2
        seen = present if group == 2 else active
        first = int(seen[:, layer, head].argmax())
        rows.append((group, first, int(layer), int(head), bytes(signs[:, layer, head].tolist()).decode("ascii")))
    rows.sort()
    return {
        "steps": list(history.steps),
        "heads": [[layer, head] for _, _, layer, head, _ in rows],
        "group": [("base", "joined", "crossed")[group] for group, *_ in rows],
        "lives": [signs for *_, signs in rows],
    }


def share_paths(history: HeadHistory, heads: Sequence[Sequence[int]], max_probes: int = 64) -> Figure | None:
    """Shares of some heads over time, in units of 1e-4: probes (indices into steps), rows [K][len(probes)].

    Long runs are thinned to about max_probes, first and last kept. None under the circuit rule, which has no shares.
    """
    if history.rule != "evidence" or not history.steps:
        return None
    probes = np.unique(np.linspace(0, len(history.steps) - 1, min(max_probes, len(history.steps))).round().astype(int))
    share = history.share[probes]
    return {
        "probes": probes.tolist(),
        "rows": [
            [None if not math.isfinite(v) else round(v * 1e4) for v in share[:, layer, head]] for layer, head in heads
        ],
    }


def survival(history: HeadHistory) -> dict[str, Figure]:
    """Kaplan-Meier curves of first spells, by group ("emerged", "base"); a group without a spell is absent.

    Each: time [K] (training steps, a step function), survival, lower, upper [K] (95 %), at_risk, censored [K], spells,
    median (None while more than half go on). Empty with fewer than two probes: no time has passed.
    """
    curves = {}
    for group in ("emerged", "base") if len(history.steps) > 1 else ():
        curve = history.survival(group)
        if curve.n_spells:
            curves[group] = {
                "time": plain(curve.time, 0),
                "survival": plain(curve.survival, 3),
                "lower": plain(curve.lower, 3),
                "upper": plain(curve.upper, 3),
                "at_risk": plain(curve.at_risk),
                "censored": plain(curve.censored),
                "spells": curve.n_spells,
                "median": plain(curve.median, 0),
            }
    return curves


def event_list(history: HeadHistory) -> Figure:
    """Events in order: columns, rows. before and now: shares (circuit rule: importance).

    q: None under the circuit rule. stability: None under the evidence rule.
    """
    columns = ["step", "layer", "head", "kind", "before", "now", "q", "stability"]
    rows = [
        [
            e.step,
            e.layer,
            e.head,
            e.kind,
            significant(e.share_before, 3),
            significant(e.share_now, 3),
            significant(e.q_value, 2),
            significant(e.stability, 3),
        ]
        for e in history.events
    ]
    return {"columns": columns, "rows": rows}


def changes(history: HeadHistory) -> dict[str, list[int]]:
    """Heads whose share is significantly and materially larger or smaller than at base, members or not: [P] each."""
    return {
        "strengthened": [int(n) for n in history.strengthened.sum(axis=(1, 2))],
        "weakened": [int(n) for n in history.weakened.sum(axis=(1, 2))],
    }


def stability(history: HeadHistory) -> Figure | None:
    """How stable the circuit's heads are over resamples of the pairs: mean [P] over active heads, now [L][H].

    None under the evidence rule, and for a run that was scored without resamples.
    """
    if history.rule != "circuit" or not history.steps or not np.isfinite(history.stability).any():
        return None
    kept = np.where(history.member, history.stability, np.nan)
    means = [float(np.nanmean(at)) if np.isfinite(at).any() else math.nan for at in kept]
    return {"mean": plain(np.array(means), 3), "now": plain(history.stability[-1], 2)}


def coupling(history: HeadHistory, training: Rows) -> list[Figure]:
    """Rank correlation of newly active heads with the reward: key, probes, rho, rho_changes (None: undefined)."""
    rows = [dict(row) for row in training]
    told = [history.coupling(rows, key) for key in COUPLING_KEYS if any(_is_number(row.get(key)) for row in rows)]
    return [
        {"key": c.key, "probes": len(c.steps), "rho": plain(c.rho, 2), "rho_changes": plain(c.rho_changes, 2)}
        for c in told
    ]


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
    if history.signal[-1] != "ok":
        return (
            f"Insufficient signal{about} at step {step:,}: clean and corrupted prompts score too much alike. "
            f"What is shown is the last probe that had one."
        )
    if sum(said == "ok" for said in history.signal) == 1:
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


def all_figures(history: HeadHistory, training: Rows = ()) -> dict[str, Figure]:
    """A snapshot of the figures that a live view draws, by name: plotly_figures.draw takes it, later or elsewhere."""
    about = {"family": history.family, "rule": history.rule, "step": history.steps[-1] if history.steps else None}
    return {
        "cohorts": {**about, **cohort_chart(history), "training": training_curves(training, LIVE_CURVE_POINTS)},
        "activation_frequency": {**about, **activation_frequency(history)},
        "effect": {**about, **effect_map(history)},
        "lives": {**about, **life_raster(history)},
        "survival": {**about, "curves": survival(history)},
    }


# --- plain values ---------------------------------------------------------------------------------------------------


def plain(values: ArrayLike, digits: int | None = None) -> Any:
    """Nested lists (or one number) that json.dumps writes short: rounded, None where not finite."""
    array = np.asarray(values)
    if array.ndim:
        return [plain(entry, digits) for entry in array]
    if array.dtype.kind in "iub":
        return int(array)
    value = float(array)
    if not math.isfinite(value):
        return None
    rounded = round(value, digits) if digits is not None else value
    return int(rounded) if rounded == int(rounded) else rounded


def significant(value: float | None, digits: int) -> float | None:
    """The value to so many significant digits; None where there is none."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _binned(points: list[tuple[int, float]], max_points: int) -> Figure:
    size = math.ceil(len(points) / max_points)
    bins = [np.array(points[start : start + size]) for start in range(0, len(points), size)]
    return {
        "steps": [round(float(b[:, 0].mean())) for b in bins],
        "values": [significant(float(b[:, 1].mean()), 4) for b in bins],
        "logs_a_point": size,
    }


def _heads(where: NDArray[np.bool_] | np.bool_) -> list[list[int]]:
    return [[int(layer), int(head)] for layer, head in np.argwhere(where)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
