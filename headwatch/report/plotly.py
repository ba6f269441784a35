"""Live figures as plotly JSON, which W&B and Trackio draw; plotly itself is not needed.

Lists instead of numpy arrays (plotly >= 6 writes those as base64, which W&B has shown empty); template "none" (the
default one takes 6 kB); 2-4 kB per figure for a model of 336 heads and 30 probes.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from headwatch.report import palette
from headwatch.report.figure_data import RULE_NAMES, Figure
from headwatch.report.palette import BASE, CELL, GAIN, INK, LOSS, NEW, SOFT

MAX_COHORTS = 8  # areas in the cohort chart
MAX_ROWS = 20  # heads in the chart of lives: W&B draws a panel about 300 pixels high
TICKS = 6  # on an axis, at most


def draw(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Draw the figures of `figure_data.all_figures`: the same names -> {"data": [...], "layout": {...}}."""
    return {name: DRAWERS[name](figure) for name, figure in figures.items()}


def cohorts(figure: Figure) -> Figure:
    """Areas by step of first emergence, a line for their sum, retained base heads dashed; reward or loss below."""
    steps, bands = figure["steps"], _merged_cohorts(figure["cohorts"])
    area = {"type": "scatter", "x": steps, "stackgroup": "cohorts", "mode": "none", "showlegend": False}
    traces: list[Figure] = [
        {**area, "name": f"since step {name}", "y": active, "fillcolor": palette.ramp(k / max(1, len(bands) - 1))}
        for k, (name, active) in enumerate(bands)
    ]
    traces += [
        _line("newly active", steps, figure["newly_active"], INK),
        _line("retained base heads", steps, figure["retained"], BASE, dash="dash"),
    ]
    layout = _layout(figure, "Newly active and retained heads", "training step", "heads")
    below = [(name, curve) for name, curve in figure["training"].items() if name in ("reward", "loss")][:1]
    for name, curve in below:
        traces.append({**_line(name, curve["steps"], curve["values"], SOFT), "yaxis": "y2"})
        layout["yaxis"]["domain"] = [0.38, 1]
        layout["yaxis2"] = {"title": {"text": name}, "domain": [0, 0.26], "zeroline": False, "nticks": 3}
        layout["xaxis"]["anchor"] = "y2"
    return {"data": traces, "layout": layout}


def activation_frequency(figure: Figure) -> Figure:
    """Layers horizontally, heads vertically; red: base heads, blue: emerged heads; open squares: active now."""
    base = {tuple(head) for head in figure["base"]}
    frequency = figure["frequency"]
    n_layers, n_heads = len(frequency), len(frequency[0]) if frequency else 0
    # One colour scale for both: frequencies of base heads are negative.
    signed = [
        [None if f is None else round(-f if (layer, head) in base else f, 2) + 0 for layer, f in enumerate(row)]
        for head, row in enumerate(zip(*frequency, strict=True))
    ]
    heatmap = {
        **_heatmap(signed, BASE, NEW),
        "hovertemplate": "L%{x}.H%{y}: %{z}<extra></extra>",
        "colorbar": {"tickvals": [-1, 0, 1], "ticktext": ["base, always", "never", "emerged, always"]},
    }
    now = {
        "type": "scatter",
        "mode": "markers",
        "name": "active now",
        "x": [layer for layer, _ in figure["active_now"]],
        "y": [head for _, head in figure["active_now"]],
        "marker": {"symbol": "square-open", "color": INK, "size": 9, "line": {"width": 1.5}},
        "hoverinfo": "skip",
    }
    layout = _map_layout(figure, "Activation frequency (outlined: active now)", n_layers, n_heads)
    return {"data": [heatmap, now], "layout": layout}


def effect(figure: Figure) -> Figure:
    """E(l, h) in [-1, 1] of the heads whose share has changed significantly; the 95 % interval on hover.

    Of a head of tiny share, E can be large by chance alone, so the others are left empty. Circuit rule: all heads.
    """
    values, known = figure["effect"], figure["low"] is not None
    if figure["rule"] == "evidence":
        changed = {tuple(head) for head in figure["changed"]}
        values = [
            [e if (layer, head) in changed else None for head, e in enumerate(r)] for layer, r in enumerate(values)
        ]
    spans = [
        [f"<br>95 %: {low} to {high}" if value else "" for value, low, high in zip(*sides, strict=True)]
        for sides in (zip(values, figure["low"], figure["high"], strict=True) if known else ())
    ]
    heatmap = {
        **_heatmap([list(row) for row in zip(*values, strict=True)], LOSS, GAIN),
        "text": [list(row) for row in zip(*spans, strict=True)],
        "hovertemplate": "L%{x}.H%{y}: %{z}" + ("%{text}" if known else "") + "<extra></extra>",
    }
    n_layers, n_heads = len(values), len(values[0]) if values else 0
    title = "Effect of training on heads that changed"
    return {"data": [heatmap], "layout": _map_layout(figure, title, n_layers, n_heads)}


def lives(figure: Figure) -> Figure:
    """Heads that did something, one per row, their spells as bars: those that emerged, then dropped base heads."""
    joined = _rows(figure, "joined")
    dropped = [row for row in _rows(figure, "base") if re.search("[3d]", row[1])]
    n_base = sum(group == "base" for group in figure["group"])
    # Heads that are active now before those that are not; stable, so otherwise by first activity.
    found = [(0, *row) for row in sorted(joined, key=lambda row: row[1][-1] not in "46eg")] + [(1, *r) for r in dropped]
    rows = found[:MAX_ROWS]
    traces = []
    for name, states in (("base", "12"), ("emerged", "4"), ("re-emerged", "6")):
        color = palette.GROUPS[name]
        x, y = _bars([signs for _, _, signs in rows], states, figure["steps"])
        if x:
            bar: Figure = {"type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": y, "hoverinfo": "x"}
            # The marker shows a spell that began at the last probe and has no length yet.
            bar |= {"line": {"color": color, "width": 6}, "marker": {"symbol": "square", "size": 6, "color": color}}
            traces.append(bar)
    shown = f"{len(rows)} of {len(found)}" if len(rows) < len(found) else "all"
    title = f"Heads that emerged or were dropped ({shown}); {n_base - len(dropped)} base heads stayed"
    layout = _layout(figure, title, "training step", "")
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [f"L{layer}.H{head}" for _, (layer, head), _ in rows],
        "tickfont": {"size": 9},
        "range": [max(len(rows), 6) - 0.5, -0.5],
        "zeroline": False,
    }
    del layout["yaxis"]["nticks"]
    return {"data": traces, "layout": layout}


def survival(figure: Figure) -> Figure:
    """Kaplan-Meier curves of first spells with 95 % intervals, base heads separately."""
    traces: list[Figure] = []
    for group in ("emerged", "base"):
        curve, color = figure["curves"].get(group), palette.GROUPS[group]
        if curve is None:
            continue
        time = curve["time"]
        edge = {"type": "scatter", "x": time, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        step = {"shape": "hv", "width": 0}
        traces += [
            {**edge, "y": curve["lower"], "line": step},
            {
                **edge,
                "y": curve["upper"],
                "line": step,
                "fill": "tonexty",
                "fillcolor": palette.translucent(color, palette.BAND_OPACITY),
            },
            {
                **_line(f"{group} ({curve['spells']})", time, curve["survival"], color),
                "line": {"shape": "hv", "color": color},
            },
        ]
    title = "Survival of first spells (resolved to the probe interval)"
    layout = _layout(figure, title, "steps since the head became active", "still active")
    layout["yaxis"]["range"] = [0, 1.02]
    return {"data": traces, "layout": layout}


DRAWERS: dict[str, Callable[[Figure], Figure]] = {
    "cohorts": cohorts,
    "activation_frequency": activation_frequency,
    "effect": effect,
    "lives": lives,
    "survival": survival,
}


# --- parts ----------------------------------------------------------------------------------------------------------


def _layout(figure: Figure, title: str, x: str, y: str) -> dict[str, Any]:
    when = f"step {figure['step']}" if figure["step"] is not None else "no probe yet"
    rule = "" if figure["rule"] == "evidence" else RULE_NAMES.get(figure["rule"], figure["rule"])
    text = f"{title}<br>{' · '.join(part for part in (figure['family'], when, rule) if part)}"
    return {
        "template": "none",
        "title": {"text": text, "font": {"size": 11}, "x": 0.02, "xanchor": "left", "y": 0.94, "yanchor": "top"},
        "font": {"size": 10},
        "xaxis": {"title": {"text": x, "standoff": 4}, "zeroline": False, "nticks": TICKS},
        "yaxis": {"title": {"text": y, "standoff": 4}, "rangemode": "tozero", "nticks": TICKS},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 10}},
        "margin": {"l": 52, "r": 12, "t": 58, "b": 36},
        "hovermode": "closest",
    }


def _map_layout(figure: Figure, title: str, n_layers: int, n_heads: int) -> dict[str, Any]:
    layout = _layout(figure, title, "layer", "head")
    layout["plot_bgcolor"] = CELL
    layout["xaxis"] |= {"range": [-0.5, n_layers - 0.5], "showgrid": False, "constrain": "domain"}
    layout["yaxis"] = {
        "title": {"text": "head"},
        "range": [n_heads - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
        "scaleanchor": "x",
        "constrain": "domain",
    }
    return layout


def _heatmap(values: list[list[Any]], low: str, high: str) -> Figure:
    colours = [[0, low], [0.5, CELL], [1, high]]
    return {"type": "heatmap", "z": values, "zmin": -1, "zmax": 1, "colorscale": colours, "xgap": 1, "ygap": 1}


def _line(name: str, x: list[int], y: list[Any], color: str, dash: str = "solid") -> Figure:
    line = {"color": color, "width": 2, "dash": dash}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line}


def _merged_cohorts(cohorts: list[Figure]) -> list[tuple[str, list[int]]]:
    """At most MAX_COHORTS bands: neighbouring cohorts are summed and named by their first and last step."""
    size = -(-len(cohorts) // MAX_COHORTS)
    groups = [cohorts[start : start + size] for start in range(0, len(cohorts), size)] if cohorts else []
    return [
        (
            str(g[0]["step"]) + (f"–{g[-1]['step']}" if len(g) > 1 else ""),
            [sum(counts) for counts in zip(*(c["active"] for c in g), strict=True)],
        )
        for g in groups
    ]


def _rows(figure: Figure, wanted: str) -> list[tuple[list[int], str]]:
    """(head, signs) of the heads of one group."""
    columns = zip(figure["heads"], figure["group"], figure["lives"], strict=True)
    return [(head, signs) for head, group, signs in columns if group == wanted]


def _bars(rows: list[str], states: str, steps: list[int]) -> tuple[list[int | None], list[int | None]]:
    """x and y of a polyline with a segment for every stretch in `states`, at the height of its row."""
    # A letter is the state of the same number, with a membership that disagrees.
    signs = states + "".join(chr(ord("a") + int(state)) for state in states)
    x: list[int | None] = []
    y: list[int | None] = []
    for height, row in enumerate(rows):
        for stretch in re.finditer(f"[{signs}]+", row):
            # A stretch ends at the probe that found the head inactive, as on the page.
            x += [steps[stretch.start()], steps[min(stretch.end(), len(steps) - 1)], None]
            y += [height, height, None]
    return x, y
