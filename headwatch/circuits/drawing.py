"""A circuit as one SVG: layers from left to right, q, k and v in colours of their own, the score as the width."""

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from headwatch.circuits.circuit import Circuit

MAX_EDGES = 150  # with more of them, single edges cannot be followed
COLOURS = {"q": "#1f66b0", "k": "#0b7a6f", "v": "#c0432b", "": "#73777f"}
NAMES = {"q": "into a query", "k": "into a key", "v": "into a value", "": "into an MLP or the logits"}
INK, SOFT, CELL, RULE = "#1c1e22", "#575c65", "#f0efeb", "#dddcd6"

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN, TOP = 58, 22, 118, 34, 24, 62  # pixels; a node, steps, margins
ENTRY = {"q": -7.0, "k": 0.0, "v": 7.0, "": 0.0}  # where an edge enters a node, from its middle

Place = tuple[float, float]


def circuit_svg(circuit: Circuit, title: str = "Circuit", max_edges: int = MAX_EDGES) -> str:
    """Draw a circuit; of a larger one the strongest edges, which its caption says.

    Args:
        circuit: its edges, the strongest first.
        title: the heading.
        max_edges: the most edges that are drawn.

    Returns:
        A standalone SVG document; every edge and node has a tooltip.
    """
    shown = list(zip(circuit.edges, circuit.scores, strict=True))[:max_edges]
    places = _places([edge for edge, _ in shown])
    width = max((x for x, _ in places.values()), default=0.0) + WIDTH + MARGIN
    height = max((y for _, y in places.values()), default=0.0) + HEIGHT + 2 * MARGIN
    width = max(width, 620.0)
    of_all = "" if len(shown) == len(circuit.edges) else f", the strongest of {len(circuit.edges):,}"
    caption = f"{len(shown)} edges{of_all}; {len(circuit.heads)} heads in the circuit. Width: mean |edge score|."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="11" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="22" font-size="14" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="38" fill="{SOFT}">{escape(caption)}</text>',
        *_legend(),
    ]
    largest = max((score for _, score in shown), default=1.0) or 1.0
    for (source, target), score in reversed(shown):  # the strongest on top
        parts.append(_edge(source, target, score, score / largest, places))
    parts += [_node(name, place) for name, place in places.items()]
    return "\n".join([*parts, "</svg>\n"])


def node_of(target: str) -> str:
    """The node of a target: "a3.h1.q" belongs to "a3.h1"."""
    return target.rsplit(".", 1)[0] if target.startswith("a") else target


def node_label(name: str) -> str:
    """The name in the drawing: "L3.H1", "L3 MLP", "input", "logits".

    >>> node_label("a3.h1"), node_label("m3")
    ('L3.H1', 'L3 MLP')
    """
    if name.startswith("a"):
        return name.upper().replace("A", "L")
    return f"L{name[1:]} MLP" if name.startswith("m") else name


def _column(name: str) -> tuple[int, int]:
    """Sorts nodes in the order of computation: (layer, 0 for heads and 1 for the MLP)."""
    if name == "input":
        return (-1, 0)
    if name == "logits":
        return (1_000_000, 0)
    if name.startswith("m"):
        return (int(name[1:]), 1)
    return (int(name[1:].split(".")[0]), 0)


def _places(edges: Sequence[tuple[str, str]]) -> dict[str, Place]:
    """The middle of the left side of every node. Columns without nodes take no room."""
    into: dict[str, list[str]] = defaultdict(list)
    columns: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in dict.fromkeys(node for source, target in edges for node in (source, node_of(target))):
        columns[_column(name)].append(name)
    for source, target in edges:
        into[node_of(target)].append(source)
    tallest = max((len(names) for names in columns.values()), default=1)
    places: dict[str, Place] = {}
    for number, key in enumerate(sorted(columns)):
        names = columns[key]

        def height(name: str) -> float:  # next to what a node reads, so that fewer edges cross
            known = [places[source][1] for source in into[name] if source in places]
            return sum(known) / len(known) if known else 0.0

        names.sort(key=lambda name: (height(name), name))
        first = TOP + MARGIN + (tallest - len(names)) * DOWN / 2
        for row, name in enumerate(names):
            places[name] = (MARGIN + number * ACROSS, first + row * DOWN)
    return places


def _edge(source: str, target: str, score: float, part: float, places: dict[str, Place]) -> str:
    kind = target.rsplit(".", 1)[1] if target.startswith("a") else ""
    (x0, y0), (x1, y1) = places[source], places[node_of(target)]
    x0, y1 = x0 + WIDTH, y1 + ENTRY[kind]
    bend = max(30.0, 0.45 * (x1 - x0))
    path = f"M{x0:.0f} {y0:.0f}C{x0 + bend:.0f} {y0:.0f} {x1 - bend:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    return (
        f'<path d="{path}" fill="none" stroke="{COLOURS[kind]}" stroke-width="{0.7 + 4.3 * part:.2f}" '
        f'stroke-opacity="{0.35 + 0.5 * part:.2f}"><title>{escape(node_label(source))} to '
        f"{escape(node_label(node_of(target)))}{f', {kind}' if kind else ''}: {score:.3g}</title></path>"
    )


def _node(name: str, place: Place) -> str:
    x, y = place
    fill = CELL if name.startswith("a") else "#ffffff"
    return (
        f'<g><rect x="{x:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="4" fill="{fill}" '
        f'stroke="{RULE}"/><text x="{x + WIDTH / 2:.0f}" y="{y + 4:.0f}" text-anchor="middle" fill="{INK}">'
        f"{escape(node_label(name))}</text></g>"
    )


def _legend() -> list[str]:
    x, parts = float(MARGIN), []
    for kind, name in NAMES.items():
        parts.append(f'<path d="M{x:.0f} 54h22" stroke="{COLOURS[kind]}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 28:.0f}" y="58" fill="{SOFT}">{name}</text>')
        x += 44 + 6.2 * len(name)
    return parts
