"""Data of every figure; html, svg and plotly draw it.

Every function takes a HeadHistory and returns JSON-serialisable dicts: numbers are rounded, and None where not finite.
L layers, H heads, P probes, K rows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch.io import plain_json
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import ACTIVE, NEWLY_ACTIVE, OF_BASE, is_in
from headwatch.record.replay import history_from_run
from headwatch.record.run_folder import RunFolder
from headwatch.stats import OK

Figure = dict[str, Any]
Rows = Iterable[Mapping[str, Any]]

RULE_NAMES = {"evidence": "evidence rule", "circuit": "circuit rule (the paper's)"}
MAX_CURVE_POINTS = 240  # more logged values are averaged in bins: a chart is about that many pixels wide
LIVE_CURVE_POINTS = 60  # for figures that are sent to a service at every probe


def cohort_chart(history: HeadHistory) -> Figure:
    """Active heads over the probes (the paper's figure A).

    Returns:
        steps [P]; newly_active [P]: active heads that were not active in the base; retained [P]: active base heads;
        cohorts: [{step, active [P]}] by step of first emergence, which sum to newly_active; signal [P]: bool.
    """
    counts = history.counts()
    return {
        "steps": list(history.steps),
        "newly_active": history.newly_active(),
        "retained": [base + kept for base, kept in zip(counts["base"], counts["retained"], strict=True)],
        "cohorts": [{"step": int(step), "active": list(active)} for step, active in sorted(history.cohorts().items())],
        "signal": has_signal(history),
    }


def training_curves(training: Rows, max_points: int = MAX_CURVE_POINTS) -> dict[str, Figure]:
    """Curves that the trainer logged: "reward", "accuracy" and "loss", where there are any (the paper's figure B).

    The loss is left out where there is a reward: GRPO's is about zero throughout.

    Returns:
        For each: key (as logged), steps, values, logs_per_point (how many logged values each point averages).
    """
    rows = [dict(row) for row in training]
    keys = dict.fromkeys(key for row in rows for key in row if not key.startswith("eval_"))
    accuracy = [key for key in keys if "accuracy" in key and not key.endswith("/std")]
    sources = {"reward": "reward", "accuracy": min(accuracy, key=len, default=None), "loss": "loss"}
    curves = {}
    for name, key in sources.items():
        if key is None or (name == "loss" and "reward" in curves):
            continue
        points = [(int(row["step"]), float(row[key])) for row in rows if is_finite_number(row.get(key))]
        if points:
            curves[name] = {"key": key, **_binned(points, max_points)}
    return curves


def probe_curves(history: HeadHistory, correct: Sequence[float | None]) -> Figure:
    """Performance on the probes themselves, which the reward does not affect directly.

    Args:
        correct: accuracy of each probe, [P] in [0, 1] or None.

    Returns:
        steps, accuracy [P]; gap [P]: mean metric gap, signed so that the first one is positive; direction: 1 or -1, the
        factor that did this; signal [P]: bool.
    """
    gaps = np.asarray(history.metric_gap, np.float64)
    nonzero = gaps[np.isfinite(gaps) & (gaps != 0.0)]
    direction = float(np.sign(nonzero[0])) if len(nonzero) else 1.0
    return {
        "steps": list(history.steps),
        "accuracy": plain(np.array(correct, np.float64), 3),
        "gap": plain(direction * gaps, 3),
        "direction": int(direction),
        "signal": has_signal(history),
    }


def activation_frequency(history: HeadHistory) -> Figure:
    """How often each head was active (the paper's figure C). Heads are [layer, head].

    Returns:
        step: of the last probe; frequency [L][H]: fraction of the probes at which the head is active, None where there
        is no head (a layer without attention); base: base heads; active_now: heads active at the last probe.
    """
    state = history.state
    base = is_in(state, OF_BASE).any(axis=0)
    return {
        "step": history.steps[-1] if history.steps else None,
        "frequency": plain(np.where(history.has_head, history.activation_frequency(), np.nan), 3),
        "base": _heads(base),
        "active_now": _heads(history.active[-1]) if history.steps else [],
    }


def effect_map(history: HeadHistory) -> Figure:
    """Effect E(l, h) of training on the importance of each head, mean over the probes after the base.

    Returns:
        step: of the last probe; effect [L][H] in [-1, 1], None where there is no head, empty before there is a probe
        after the base; low, high
        [L][H]: 95 % interval over the pairs, not corrected over heads, or None where the record has no resamples;
        measure: name of the importance; changed: heads whose share has changed significantly and materially by the last
        probe (E alone can be large for a head of tiny share).
    """
    compared = sum(has_signal(history)) > 1
    measure = "summed |edge score|, the paper’s" if history.rule == "circuit" else "|share|"
    effect = np.where(history.has_head, history.effect(), np.nan) if compared else np.zeros((0, 0))
    interval = history.effect_interval() if compared else None
    changed = history.strengthened[-1] | history.weakened[-1] if history.steps else np.bool_(False)
    return {
        "step": history.steps[-1] if history.steps else None,
        "effect": plain(effect, 2),
        "low": None if interval is None else plain(interval[0], 2),
        "high": None if interval is None else plain(interval[1], 2),
        "measure": measure,
        "changed": _heads(changed),
    }


def life_raster(history: HeadHistory) -> Figure:
    """States of every head that was ever active or a member of the active set, one row per head.

    Rows are ordered by group, first activity, layer and head.

    Returns:
        steps [P]; heads [K]; group [K]: "base", "joined" (emerged at some probe) or "crossed" (a member of the active
        set without evidence only); lives [K]: strings of P signs. A sign is the digit of the HeadState, or, where the
        membership disagrees with the state (a change without evidence), the letter of that number (a = 0 ... g = 6).
    """
    state, member = history.state, history.member
    active = is_in(state, ACTIVE)
    present = active | member
    signs = np.where(active == member, state, state + ord("a") - ord("0")) + ord("0")
    rows = []
    for layer, head in np.argwhere(present.any(axis=0)) if history.steps else []:
        mine = state[:, layer, head]
        group = 0 if is_in(mine, OF_BASE).any() else 1 if is_in(mine, NEWLY_ACTIVE).any() else 2
        shown = present if group == 2 else active
        first = int(shown[:, layer, head].argmax())
        rows.append((group, first, int(layer), int(head), bytes(signs[:, layer, head].tolist()).decode("ascii")))
    rows.sort()
    return {
        "steps": list(history.steps),
        "heads": [[layer, head] for _, _, layer, head, _ in rows],
        "group": [("base", "joined", "crossed")[group] for group, *_ in rows],
        "lives": [signs for *_, signs in rows],
    }


def survival(history: HeadHistory) -> dict[str, Figure]:
    """Kaplan-Meier curves of first spells for the groups "emerged" and "base" that have any; none before two probes.

    Returns:
        For each group: time [K] (training steps), survival, lower, upper [K] (95 % interval), at_risk, censored [K],
        spells (their number), median (None while more than half last).
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
    """Events in order of step.

    Returns:
        columns (names) and rows. before, now: share (circuit rule: importance); lower, upper: 95 % interval of its
        change; q, p: None under the circuit rule; stability: None under the evidence rule; raw_before, raw_now, raw_p:
        of the raw score; status: "confirmed", "pending" or "withdrawn"; patched_before, patched_now, patched_p: of
        the share by exact patching; patching: its verdict on the event.
    """
    columns = ["step", "layer", "head", "kind", "before", "now", "q", "stability", "p"]
    numbers = ["lower", "upper", "raw_before", "raw_now", "raw_p"]
    patched = ["patched_before", "patched_now", "patched_p"]
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
            significant(e.p_value, 2),
            *(significant(getattr(e, name), 3) for name in numbers),
            e.status,
            *(significant(getattr(e, name), 3) for name in patched),
            e.patching,
        ]
        for e in history.events
    ]
    return {"columns": [*columns, *numbers, "status", *patched, "patching"], "rows": rows}


def changes(history: HeadHistory) -> dict[str, list[int]]:
    """Heads whose |share| is significantly and materially larger or smaller than in the base, [P] each."""
    return {
        "strengthened": [int(n) for n in history.strengthened.sum(axis=(1, 2))],
        "weakened": [int(n) for n in history.weakened.sum(axis=(1, 2))],
    }


def noise(history: HeadHistory) -> Figure:
    """Membership changes with their null band, and agreement between halves of the pairs; None where not known.

    Returns:
        membership [P]: heads that entered or left the active set since the base; low, high [P]: central 95 % of such
        changes between two samples of one probe's pairs; split_half [P]: Spearman correlation between two halves.
    """
    bands = [*history.null_band, *[None] * (len(history.steps) - len(history.null_band))]
    return {
        "membership": history.membership_changes(),
        "low": [None if band is None else significant(band.low, 3) for band in bands],
        "high": [None if band is None else significant(band.high, 3) for band in bands],
        "split_half": plain(np.array(history.split_half, np.float64), 3),
    }


def turnover(history: HeadHistory) -> Figure:
    """Heads that became active and that stopped being active since the probe before: gained, lost [P], 0 at first."""
    gained, lost = history.gained_and_lost()
    return {"gained": gained, "lost": lost}


def concentration(history: HeadHistory) -> Figure:
    """Distribution of the importance over heads, [P] each: entropy (1: uniform), excess kurtosis, intensity.

    intensity: sum of |raw score|; None under the circuit rule, which has no signed scores.
    """
    return {
        "entropy": plain(np.array(history.entropy()), 3),
        "kurtosis": plain(np.array(history.kurtosis()), 1),
        "intensity": [significant(at, 3) for at in history.intensity()],
    }


def stability(history: HeadHistory) -> Figure | None:
    """Share of the resamples of the pairs that keep a head in the circuit: mean [P] over active heads, now [L][H].

    None under the evidence rule and without resamples.
    """
    if history.rule != "circuit" or not history.steps or not np.isfinite(history.stability).any():
        return None
    kept = np.where(history.member, history.stability, np.nan)
    means = [float(np.nanmean(at)) if np.isfinite(at).any() else math.nan for at in kept]
    return {"mean": plain(np.array(means), 3), "now": plain(history.stability[-1], 2)}


def all_figures(history: HeadHistory, training: Rows = ()) -> dict[str, Figure]:
    """Data of the figures that are logged during training, by name: the input of `plotly.draw`."""
    about = {"family": history.family, "rule": history.rule, "step": history.steps[-1] if history.steps else None}
    return {
        "cohorts": {**about, **cohort_chart(history), "training": training_curves(training, LIVE_CURVE_POINTS)},
        "activation_frequency": {**about, **activation_frequency(history)},
        "effect": {**about, **effect_map(history)},
        "lives": {**about, **life_raster(history)},
        "survival": {**about, "curves": survival(history)},
    }


def has_signal(history: HeadHistory) -> list[bool]:
    """Whether each probe has enough signal to define shares, [P]."""
    return [status == OK for status in history.signal]


# --- runs -------------------------------------------------------------------------------------------------------------


def histories_by_rule(run: RunFolder, family: str) -> dict[str, HeadHistory]:
    """The family's history by each rule; "circuit" only where every probe has a circuit."""
    scores = [run.read_scores(step) for step in run.steps]
    with_circuits = all(at.circuit_active is not None and at.importance is not None for at in scores)
    rules = ("evidence", "circuit") if with_circuits else ("evidence",)
    return {rule: history_from_run(run, family=family, rule=rule) for rule in rules}


def run_name(run: RunFolder) -> str:
    """The run's name, by default that of the folder that contains the record."""
    return str(run.manifest.get("name") or run.path.parent.name)


# --- plain values ---------------------------------------------------------------------------------------------------


plain = partial(plain_json.plain, whole_as_int=True)  # the page's JSON, short


def significant(value: float | None, digits: int) -> float | None:
    """The value rounded to significant digits; None where it is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def is_finite_number(value: Any) -> bool:
    """Whether a logged value is a finite number (bool is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _binned(points: list[tuple[int, float]], max_points: int) -> Figure:
    size = math.ceil(len(points) / max_points)
    bins = [np.array(points[start : start + size]) for start in range(0, len(points), size)]
    return {
        "steps": [int(b[-1, 0]) for b in bins],  # a point is the mean of the logs up to its step
        "values": [significant(float(b[:, 1].mean()), 4) for b in bins],
        "logs_per_point": size,
    }


def _heads(where: NDArray[np.bool_] | np.bool_) -> list[list[int]]:
    return [[int(layer), int(head)] for layer, head in np.argwhere(where)]
