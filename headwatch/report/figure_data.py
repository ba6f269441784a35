"""Every figure once, as plain JSON-able data; plotly_figures.py and report.py draw it. No drawing here, no styling.

Every function takes a HeadHistory (and what else it needs) and returns dicts of lists, numbers, strings and None: what
is not finite becomes None, numbers are rounded, nothing is a numpy type. L layers, H heads, P probes, K rows.
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
    counted positive in the base's direction; direction: 1 or -1, what gap was multiplied by. signal: [P] bool.
    """
    gaps = np.asarray(history.metric_gap, np.float64)
    told = gaps[np.isfinite(gaps) & (gaps != 0.0)]
    direction = float(np.sign(told[0])) if len(told) else 1.0
    return {
        "steps": list(history.steps),
        "accuracy": plain(np.array(correct, np.float64), 3),
        "gap": plain(direction * gaps, 3),
        "direction": int(direction),
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

    measure says what the importance is: edge scores under the circuit rule, |share| under the evidence rule. low, high
    [L][H]: the 95 % interval over the pairs, for each head by itself; None where the record has no resamples. changed:
    heads whose share has changed significantly and materially by the last probe; E is large for tiny heads too.
    """
    told = sum(said == "ok" for said in history.signal)
    measure = "summed |edge score|, the paper’s" if history.rule == "circuit" else "|share|"
    effect = history.effect() if told > 1 else np.zeros((0, 0))
    interval = history.effect_interval() if told > 1 else None
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

    q, p: None under the circuit rule. stability: None under the evidence rule. lower, upper: 95 % interval of the
    change; raw_before, raw_now, raw_p: the same of the raw score; status: "confirmed", "pending" or "withdrawn"; each
    None where the history does not tell.
    """
    columns = ["step", "layer", "head", "kind", "before", "now", "q", "stability", "p"]
    more = ["lower", "upper", "raw_before", "raw_now", "raw_p"]
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
            *(significant(getattr(e, name, None), 3) for name in more),
            getattr(e, "status", None),
        ]
        for e in history.events
    ]
    return {"columns": [*columns, *more, "status"], "rows": rows}


def changes(history: HeadHistory) -> dict[str, list[int]]:
    """Heads whose share is significantly and materially larger or smaller than at base, members or not: [P] each."""
    return {
        "strengthened": [int(n) for n in history.strengthened.sum(axis=(1, 2))],
        "weakened": [int(n) for n in history.weakened.sum(axis=(1, 2))],
    }


def noise(history: HeadHistory) -> Figure:
    """What the sample of pairs alone would do, beside what happened; each [P], None where it is not known.

    membership: heads that entered or left the active set since the base. low, high: the central 95 % of such changes
    between two samples of one probe's pairs. split_half: Spearman agreement of two halves of the pairs.
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
    """How the importance is spread over heads, each [P]: entropy (1: all alike), kurtosis, intensity (sum of |score|).

    intensity: None under the circuit rule, which has no signed scores.
    """
    return {
        "entropy": plain(np.array(history.entropy()), 3),
        "kurtosis": plain(np.array(history.kurtosis()), 1),
        "intensity": [significant(at, 3) for at in history.intensity()],
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
    """Rank correlation of newly active heads with the reward: key, probes, rho, rho_changes (None: undefined).

    lagged: the tested correlation at the best lag in words, None where the coupling has none.
    """
    rows = [dict(row) for row in training]
    told = [history.coupling(rows, key) for key in COUPLING_KEYS if any(_is_number(row.get(key)) for row in rows)]
    return [
        {
            "key": c.key,
            "probes": len(c.steps),
            "rho": plain(c.rho, 2),
            "rho_changes": plain(c.rho_changes, 2),
            "lagged": c.lagged().describe("Newly active heads", c.key) if hasattr(c, "lagged") else None,
        }
        for c in told
    ]


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


plain = partial(plain_json.plain, whole_as_int=True)  # the page's JSON, short


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
