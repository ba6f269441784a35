"""Summary of a record of two models: heads that emerged, stayed or were dropped, effects, and components."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch import stats
from headwatch.io.plain_json import plain
from headwatch.lives.events import Event
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import HeadState
from headwatch.model.head_names import head_name
from headwatch.record.replay import history_from_run
from headwatch.record.run_folder import RunFolder
from headwatch.stats.importance import effect

KINDS = {"emerged": HeadState.EMERGED, "dropped": HeadState.DROPPED, "retained": HeadState.RETAINED}
Floats = NDArray[np.float64]


def comparison_of(run: RunFolder) -> dict[str, Any]:
    """The comparison of the first with the last probe of a record, as plain values, by family.

    Each family has "signal", "accuracy" (base, post), "evidence" and "circuit" (heads of each kind, and the effect on
    every head [L, H]), and "components" (`component_shift`); the last two only if edges were scored.
    """
    last = run.steps[-1]
    has_edges = run.read_scores(last).edges_mean_abs is not None
    found: dict[str, Any] = {}
    for index, family in enumerate(run.families):
        history = history_from_run(run, family)
        found[family] = {
            "signal": history.signal[-1] if history.signal[0] == stats.OK else history.signal[0],
            "accuracy": _accuracy(run, family),
            "metric_gap": [history.metric_gap[0], history.metric_gap[-1]],
            "evidence": _heads(history),
        }
        if has_edges:
            found[family]["circuit"] = _heads(history_from_run(run, family, rule="circuit"))
            found[family]["components"] = component_shift(run, index)
    return dict(plain(found))


def _accuracy(run: RunFolder, family: str) -> list[float | None]:
    pairs = run.pairs_of(family)
    correct = [run.read_scores(step).correct for step in (run.steps[0], run.steps[-1])]
    return [None if c is None else float(c[pairs].mean()) for c in correct]


def _heads(history: HeadHistory) -> dict[str, Any]:
    """Counts, heads and effects of one history."""
    state, by_evidence = history.state[-1], history.rule == "evidence"
    found: dict[str, Any] = {
        "counts": {kind: int((state == member).sum()) for kind, member in KINDS.items()},
        "heads": {kind: _of_kind(history, state == member) for kind, member in KINDS.items()},
        "effect": effect(history.importance[-1], history.importance[0]).tolist(),
    }
    if by_evidence:
        found["strengthened"] = _names(history.strengthened[-1])
        found["weakened"] = _names(history.weakened[-1])
    return found


def _of_kind(history: HeadHistory, where: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """One entry per head, the largest change first."""
    rows = []
    if history.rule == "evidence":
        change = history.change()
        lower, upper = change.interval()
        patched = {(event.layer, event.head): event for event in history.events if event.step == history.steps[-1]}
        for at in map(tuple, np.argwhere(where)):
            rows.append(
                {
                    "head": head_name(*at),
                    "share_before": float(history.share[0][at]),
                    "share_now": float(history.share[-1][at]),
                    "difference": float(change.difference[-1][at]),
                    "low": float(lower[-1][at]),
                    "high": float(upper[-1][at]),
                    "p_value": float(change.p_value[-1][at]),
                    "q_value": float(change.q_value[-1][at]),
                    **_patching(patched.get(at)),
                }
            )
        return sorted(rows, key=lambda row: -abs(row["difference"]))
    for at in map(tuple, np.argwhere(where)):
        before, now = float(history.importance[0][at]), float(history.importance[-1][at])
        stability = [float(history.stability[0][at]), float(history.stability[-1][at])]
        rows.append(
            {
                "head": head_name(*at),
                "importance_before": before,
                "importance_now": now,
                "effect": float(effect(now, before)),
                "stability_before": stability[0],
                "stability_now": stability[1],
            }
        )
    return sorted(rows, key=lambda row: -abs(row["importance_now"] - row["importance_before"]))


def _patching(event: Event | None) -> dict[str, Any]:
    """The patched shares of a head's event and their verdict; None where the head was not patched."""
    return {name: getattr(event, name, None) for name in ("patched_before", "patched_now", "patched_p", "patching")}


def _names(where: NDArray[np.bool_]) -> list[str]:
    return [head_name(*at) for at in np.argwhere(where)]


# --- components -----------------------------------------------------------------------------------------------------


def component_shift(run: RunFolder, family: int) -> dict[str, Any]:
    """Importance of attention, MLP and input by layer at both ends of a record, and the effect on each.

    Args:
        run: a record with edge scores.
        family: index of the family.

    Returns:
        Component -> {"before": [L], "now": [L], "effect": [L]}, see `component_importance`.
    """
    model = run.manifest["model"]
    shape = (int(model["n_layers"]), int(model["n_heads"]))
    ends = []
    for step in (run.steps[0], run.steps[-1]):
        edges = run.read_scores(step).edges_mean_abs
        assert edges is not None
        ends.append(component_importance(edges[family], shape))
    before, now = ends
    return {
        name: {"before": before[name], "now": now[name], "effect": effect(now[name], before[name])} for name in before
    }


def component_importance(edges: NDArray[Any], shape: tuple[int, int]) -> dict[str, Floats]:
    """The part of the total |edge score| of each component and layer.

    Args:
        edges: mean |edge score|, [S, R], 0 where there is no edge.
        shape: (L, H).

    Returns:
        "attention": edges out of the layer's heads, [L]; "mlp": edges out of its MLP, [L]; "input": edges from the
        embeddings into the layer, [L]. With the edge from input to logits, all sum to 1.
    """
    n_layers, n_heads = shape
    e = np.asarray(edges, np.float64)
    out = e[1:].sum(axis=1).reshape(n_layers, n_heads + 1)
    into = e[0, :-1].reshape(n_layers, 3 * n_heads + 1).sum(axis=1)
    total = e.sum()
    scale = 1.0 / total if total > 0 else 0.0
    return {"attention": out[:, :-1].sum(axis=1) * scale, "mlp": out[:, -1] * scale, "input": into * scale}


# --- as text --------------------------------------------------------------------------------------------------------


def lines_of(found: dict[str, Any], top: int = 10) -> list[str]:
    """The comparison as text."""
    lines = []
    for family, one in found.items():
        accuracy = " -> ".join("?" if a is None else f"{a:.0%}" for a in one["accuracy"])
        lines.append(f"  {family}: accuracy {accuracy}, signal: {one['signal']}")
        for rule in ("evidence", "circuit"):
            if rule in one:
                counts = ", ".join(f"{n} {kind}" for kind, n in one[rule]["counts"].items())
                changed = (
                    ""
                    if rule == "circuit"
                    else "".join(f", {len(one[rule][kind])} {kind}" for kind in ("strengthened", "weakened"))
                )
                lines.append(f"    {rule} rule: {counts}{changed}")
        for kind in ("emerged", "dropped"):
            for row in one["evidence"]["heads"][kind][:top]:
                lines.append(
                    f"      {kind:<8} {row['head']:>9}  share {row['share_before']:+.3f} -> {row['share_now']:+.3f}  "
                    f"p {row['p_value']:.1e}  q {row['q_value']:.1e}{_patching_text(row)}"
                )
        if "components" in one:
            parts = (
                f"{name} {100 * sum(part['before']):.1f} -> {100 * sum(part['now']):.1f} %"
                for name, part in one["components"].items()
            )
            lines.append(f"    |edge score|: {', '.join(parts)}")
    return lines


def _patching_text(row: dict[str, Any]) -> str:
    """The head's share by exact patching and its verdict, for the end of a line.

    >>> _patching_text({"patched_before": 0.017, "patched_now": 0.056, "patching": "supports"})
    '  patched +0.017 -> +0.056: supports'
    """
    if row["patched_now"] is None:
        return ""
    before = "?" if row["patched_before"] is None else f"{row['patched_before']:+.3f}"
    verdict = "" if row["patching"] is None else f": {row['patching']}"
    return f"  patched {before} -> {row['patched_now']:+.3f}{verdict}"
