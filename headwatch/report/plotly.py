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
MAX_ROWS = 80  # heads in the chart of lives: W&B's panels are too small for more


def draw(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Draw the figures of `figure_data.all_figures`: the same names -> {"data": [...], "layout": {...}}."""
    return {name: DRAWERS[name](figure) for name, figure in figures.items()}


def cohorts(figure: Figure) -> Figure:
    """Areas by step of first emergence, a line for their sum, retained base heads dashed; reward or loss below."""
    steps, bands = figure["steps"], _merged_cohorts(figure["cohorts"])
    area = {"type": "scatter", "x": steps, "stackgroup": "cohorts", "mode": "none"}
    traces: list[Figure] = [
        {**area, "name": f"since {name}", "y": active, "fillcolor": palette.ramp(k / max(1, len(bands) - 1))}
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
        layout["yaxis"]["domain"] = [0.3, 1]
        layout["yaxis2"] = {"title": {"text": name}, "domain": [0, 0.22], "zeroline": False}
        layout["xaxis"]["anchor"] = "y2"
    return {"data": traces, "layout": layout}


def activation_frequency(figure: Figure) -> Figure:
    """Layers horizontally, heads vertically; red: base heads, blue: emerged heads; open squares: active now."""
    base = {tuple(head) for head in figure["base"]}
    frequency = figure["frequency"]
    n_layers, n_heads = len(frequency), len(frequency[0]) if frequency else 0
    # One colour scale for both: frequencies of base heads are negative.
    signed = [
        [round(-f if (layer, head) in base else f, 2) + 0 for layer, f in enumerate(row)]
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
    """E(l, h) in [-1, 1], layers horizontally, heads vertically; the 95 % interval on hover."""
    values, known = figure["effect"], figure["low"] is not None
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
    title = f"Effect on {figure['measure']}, mean over probes"
    return {"data": [heatmap], "layout": _map_layout(figure, title, n_layers, n_heads)}


def lives(figure: Figure) -> Figure:
    """One row per head, its spells as bars; heads that emerged in training first, then base heads."""
    order = {"joined": 0, "base": 1}
    rows = [
        (order[group], head, signs)
        for head, group, signs in zip(figure["heads"], figure["group"], figure["lives"], strict=True)
        if group in order
    ]
    rows = sorted(rows, key=lambda row: row[0])[:MAX_ROWS]  # stable: within a group by first activity
    omitted = sum(group in order for group in figure["group"]) - len(rows)
    traces = []
    for name, states in (("base", "12"), ("emerged", "4"), ("re-emerged", "6")):
        color = palette.GROUPS[name]
        x, y = _bars([signs for _, _, signs in rows], states, figure["steps"])
        if x:
            bar: Figure = {"type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": y, "hoverinfo": "x"}
            # The marker shows a spell that began at the last probe and has no length yet.
            bar |= {"line": {"color": color, "width": 6}, "marker": {"symbol": "square", "size": 6, "color": color}}
            traces.append(bar)
    title = "Lives of heads" + (f" (the first {MAX_ROWS}; {omitted} omitted)" if omitted else "")
    layout = _layout(figure, title, "training step", "")
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [f"L{layer}.H{head}" for _, (layer, head), _ in rows],
        "range": [len(rows) - 0.5, -0.5],
        "zeroline": False,
    }
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
    about = [title, when, figure["family"], RULE_NAMES.get(figure["rule"], figure["rule"])]
    text = " · ".join(part for part in about if part)
    return {
        "template": "none",
        "title": {"text": text, "font": {"size": 13}, "x": 0.02, "xanchor": "left"},
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
        "margin": {"l": 56, "r": 16, "t": 40, "b": 44},
        "hovermode": "closest",
    }


def _map_layout(figure: Figure, title: str, n_layers: int, n_heads: int) -> dict[str, Any]:
    layout = _layout(figure, title, "layer", "head")
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
