"""A faithfulness curve as one SVG, and as plotly JSON: faithfulness over the number of edges (logarithmic), with
random circuits.
"""

import math
from html import escape
from typing import Any

INK, SOFT, GRID, LINE, RANDOM = "#1c1e22", "#575c65", "#ecebe6", "#1f66b0", "#a3a6aa"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 340, 52, 30, 58, 44


def curve_svg(curve: dict[str, Any], title: str) -> str:
    """Draw a curve.

    Args:
        curve: `FaithfulnessCurve.to_json()`.
        title: the heading.

    Returns:
        A standalone SVG document.
    """
    rows = [row for row in curve["curve"] if row["size"] > 0.0]
    values = [v for row in rows for v in (row["lower"], row["upper"], row["faithfulness"], *row["random"])]
    low, high = min(-0.1, *values), max(1.1, *values)
    low, high = max(low, -1.0), min(high, 2.0)  # what lies beyond is cut off
    first = math.log10(rows[0]["size"])

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(size) - first) / -first if first else float(LEFT)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(value, low), high)) / (high - low)

    def line(points: list[tuple[float, float]]) -> str:
        return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)

    areas = f"CPR {curve['cpr']:.3f}, CMD {curve['cmd']:.3f}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="11" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="{LEFT}" y="37" fill="{SOFT}">{areas}. Shaded: 95 % over pairs. Grey: random circuits with as many '
        "edges.</text>",
    ]
    for value in (0.0, 0.5, 1.0):
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="{SOFT}">{value:g}</text>')
    for size in (0.001, 0.01, 0.1, 1.0):
        if size >= rows[0]["size"]:
            at = f'x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 18}"'
            parts.append(f'<text {at} text-anchor="middle" fill="{SOFT}">{100 * size:g} %</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle" fill="{INK}">edges</text>')
    band = [(r["size"], r["upper"]) for r in rows] + [(r["size"], r["lower"]) for r in reversed(rows)]
    parts.append(f'<polygon points="{line(band)}" fill="{LINE}" fill-opacity="0.16"/>')
    for control in range(len(rows[0]["random"])):
        points = line([(row["size"], row["random"][control]) for row in rows])
        parts.append(f'<polyline points="{points}" fill="none" stroke="{RANDOM}"/>')
    points = line([(row["size"], row["faithfulness"]) for row in rows])
    parts.append(f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    for row in rows:
        note = f"{row['edges']:,} edges, {row['heads']} heads: {row['faithfulness']:.3f}"
        at = f'cx="{x(row["size"]):.1f}" cy="{y(row["faithfulness"]):.1f}"'
        parts.append(f'<circle {at} r="3" fill="{LINE}"><title>{note}</title></circle>')
    return "\n".join([*parts, "</svg>\n"])


def curve_figure(curve: dict[str, Any], title: str) -> dict[str, Any]:
    """The curve as plotly JSON, {"data", "layout"}; see `curve_svg`."""
    rows = curve["curve"]
    sizes = [100.0 * row["size"] for row in rows]
    line = {"type": "scatter", "mode": "lines", "x": sizes}
    shade = {"fill": "tonexty", "fillcolor": "rgba(31,102,176,0.16)"}
    hidden = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    data: list[dict[str, Any]] = [
        {**line, **hidden, "y": [row["upper"] for row in rows]},
        {**line, **hidden, **shade, "y": [row["lower"] for row in rows]},
    ]
    for control in range(len(rows[0]["random"])):
        values = [row["random"][control] for row in rows]
        name = {"name": "random circuits", "showlegend": control == 0, "line": {"color": RANDOM, "width": 1}}
        data.append({**line, **name, "y": values})
    values = [row["faithfulness"] for row in rows]
    data.append({**line, "mode": "lines+markers", "name": "circuit", "y": values, "line": {"color": LINE}})
    layout = {
        "template": "none",
        "title": {"text": f"Faithfulness of circuits: {title}", "font": {"size": 13}},
        "xaxis": {"type": "log", "title": {"text": "% of the edges"}},
        "yaxis": {"title": {"text": "faithfulness"}},
        "legend": {"orientation": "h"},
    }
    return {"data": data, "layout": layout}
