"""The figures of figures.py as plotly's JSON, for W&B: dicts of lists and numbers, so plotly itself is not needed.

Plain lists, never numpy (plotly >= 6 would write base64 that W&B has shown empty), template "none" (the default
template alone is 6 kB), the step in every title, 2-4 kB each for a model of 336 heads and 30 probes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from headwatch.report.figure_data import RULE_NAMES, Figure

BASE, NEW, BACK, INK, SOFT = "#c0432b", "#1f66b0", "#7b4fb5", "#1c1e22", "#73777f"
# Early cohorts dark, late ones light: an order that survives any colour vision.
RAMP = ("#1c3a78", "#225285", "#286a94", "#2f8fae", "#52a5b0", "#7dbab0", "#9ccdb0", "#b7dfb0")
MAX_ROWS = 80  # heads in the raster; W&B panels are too small for more
GONE = "."


def draw(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Draw what figures.all_figures collected: name -> {"data": [...], "layout": {...}}, the same names."""
    return {name: DRAWERS[name](figure) for name, figure in figures.items()}


def cohorts(figure: Figure) -> Figure:
    """Areas by step of first emergence, a line for their sum, retained base heads dashed; reward or loss below."""
    steps = figure["steps"]
    traces: list[Figure] = []
    for index, (name, active) in enumerate(_merged_cohorts(figure["cohorts"])):
        color = RAMP[index * (len(RAMP) - 1) // max(1, min(len(figure["cohorts"]), len(RAMP)) - 1)]
        traces.append(
            {
                "type": "scatter",
                "name": f"since {name}",
                "x": steps,
                "y": active,
                "stackgroup": "cohorts",
                "mode": "none",
                "fillcolor": color,
            }
        )
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
    """Layers across, heads down; red: base heads, blue: heads that joined; open squares: active now."""
    base = {tuple(head) for head in figure["base"]}
    frequency = figure["frequency"]
    n_layers, n_heads = len(frequency), len(frequency[0]) if frequency else 0
    # One trace holds both scales: a base head's frequency is drawn below zero.
    signed = [
        [round(-f if (layer, head) in base else f, 2) + 0 for layer, f in enumerate(row)]
        for head, row in enumerate(zip(*frequency, strict=True))
    ]
    heatmap = {
        "type": "heatmap",
        "z": signed,
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, BASE], [0.5, "#f4f3ef"], [1, NEW]],
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "L%{x}.H%{y}: %{z}<extra></extra>",
        "colorbar": {"tickvals": [-1, 0, 1], "ticktext": ["base, always", "never", "joined, always"]},
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
    """E(l, h) in [-1, 1], layers across, heads down; the 95 % interval on hovering."""
    values, known = figure["effect"], figure["low"] is not None
    spans = [
        [f"<br>95 %: {low} to {high}" if value else "" for value, low, high in zip(*sides, strict=True)]
        for sides in (zip(values, figure["low"], figure["high"], strict=True) if known else ())
    ]
    heatmap = {
        "type": "heatmap",
        "z": [list(row) for row in zip(*values, strict=True)],
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, "#9a6412"], [0.5, "#f4f3ef"], [1, "#0b7a6f"]],
        "xgap": 1,
        "ygap": 1,
        "text": [list(row) for row in zip(*spans, strict=True)],
        "hovertemplate": "L%{x}.H%{y}: %{z}" + ("%{text}" if known else "") + "<extra></extra>",
    }
    n_layers, n_heads = len(values), len(values[0]) if values else 0
    title = f"Effect on {figure['measure']}, mean over probes"
    return {"data": [heatmap], "layout": _map_layout(figure, title, n_layers, n_heads)}


def lives(figure: Figure) -> Figure:
    """One row a head, its active stretches as bars; heads that joined in training first, then base heads."""
    order = {"joined": 0, "base": 1}
    rows = [
        (order[group], head, signs)
        for head, group, signs in zip(figure["heads"], figure["group"], figure["lives"], strict=True)
        if group in order
    ]
    rows = sorted(rows, key=lambda row: row[0])[:MAX_ROWS]  # stable: within a group by first activity
    left_out = sum(group in order for group in figure["group"]) - len(rows)
    traces = []
    for name, color, states in (("base", BASE, "12"), ("emerged", NEW, "4"), ("re-emerged", BACK, "6")):
        x, y = _bars([signs for _, _, signs in rows], states, figure["steps"])
        if x:
            bar: Figure = {"type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": y, "hoverinfo": "x"}
            # The marker shows a stretch that has only just begun and has no length yet.
            bar |= {"line": {"color": color, "width": 6}, "marker": {"symbol": "square", "size": 6, "color": color}}
            traces.append(bar)
    title = "Lives of heads" + (f" (the first {MAX_ROWS}; {left_out} base heads more)" if left_out else "")
    layout = _layout(figure, title, "training step", "")
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [f"L{layer}.H{head}" for _, (layer, head), _ in rows],
        "range": [len(rows) - 0.5, -0.5],
        "zeroline": False,
    }
    return {"data": traces, "layout": layout}


def survival(figure: Figure) -> Figure:
    """Kaplan-Meier curves of first spells with their 95 % intervals; base heads apart."""
    traces: list[Figure] = []
    for group, color, tint in (("emerged", NEW, "rgba(31,102,176,0.15)"), ("base", BASE, "rgba(192,67,43,0.15)")):
        curve = figure["curves"].get(group)
        if curve is None:
            continue
        time = curve["time"]
        edge = {"type": "scatter", "x": time, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        step = {"shape": "hv", "width": 0}
        traces += [
            {**edge, "y": curve["lower"], "line": step},
            {**edge, "y": curve["upper"], "line": step, "fill": "tonexty", "fillcolor": tint},
            {
                **_line(f"{group} ({curve['spells']})", time, curve["survival"], color),
                "line": {"shape": "hv", "color": color},
            },
        ]
    layout = _layout(
        figure, "Survival of first spells (known to the probes’ distance)", "steps since active", "still active"
    )
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


def _line(name: str, x: list[int], y: list[Any], color: str, dash: str = "solid") -> Figure:
    line = {"color": color, "width": 2, "dash": dash}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line}


def _merged_cohorts(cohorts: list[Figure]) -> list[tuple[str, list[int]]]:
    """At most as many bands as the ramp has colours: neighbours together, named by their first and last step."""
    size = -(-len(cohorts) // len(RAMP))
    groups = [cohorts[start : start + size] for start in range(0, len(cohorts), size)] if cohorts else []
    return [
        (
            str(g[0]["step"]) + (f"–{g[-1]['step']}" if len(g) > 1 else ""),
            [sum(counts) for counts in zip(*(c["active"] for c in g), strict=True)],
        )
        for g in groups
    ]


def _bars(rows: list[str], states: str, steps: list[int]) -> tuple[list[int | None], list[int | None]]:
    """Polyline with gaps: a piece for every stretch in `states`, at its row's height."""
    # A letter is the state of the same number, held without the active set's agreement: still that state.
    wanted = set(states) | {chr(ord("a") + int(state)) for state in states}
    x: list[int | None] = []
    y: list[int | None] = []
    for height, signs in enumerate(rows):
        inside = "".join("x" if sign in wanted else GONE for sign in signs)
        start = 0
        for piece in inside.split(GONE):
            if piece:
                end = start + len(piece) - 1
                # A stretch ends where the next probe found it gone, as in the report.
                x += [steps[start], steps[min(end + 1, len(steps) - 1)], None]
                y += [height, height, None]
            start += len(piece) + 1
    return x, y
