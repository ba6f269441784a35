"""A circuit as one SVG: layers from left to right, q, k and v in colours of their own, the score as the width.

The MLPs, the input and the logits are one row, with edges among them as arcs below it; the heads are above their MLP.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from headwatch.circuits.circuit import Circuit

MAX_EDGES = 150  # with more of them, single edges cannot be followed
COLOURS = {"q": "#1f66b0", "k": "#0b7a6f", "v": "#c0432b", "": "#73777f"}
NAMES = {"q": "into a query", "k": "into a key", "v": "into a value", "": "into an MLP or the logits"}
INK, SOFT, CELL, RULE = "#1c1e22", "#575c65", "#f0efeb", "#dddcd6"

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN, TOP = 50, 20, 84, 44, 24, 74  # pixels; a node, steps, margins
ENTRY = {"q": -6.0, "k": 0.0, "v": 6.0, "": 0.0}  # where an edge enters a head, from its middle
DEEPEST = 150.0  # of the arcs below the row

Place = tuple[float, float]


@dataclass(frozen=True)
class Geometry:
    """Where the nodes and edges of a drawing are, in pixels.

    Attributes:
        width, height: of the drawing.
        nodes: name -> the middle of the left side.
        edges: (source, target, score, share of the largest score, SVG path), the strongest last.
    """

    width: float
    height: float
    nodes: dict[str, Place]
    edges: list[tuple[str, str, float, float, str]]


def geometry(edges: Sequence[tuple[str, str, float]], top: float = TOP) -> Geometry:
    """Lay out (source, target, score), the strongest first; `top` pixels above the nodes stay free."""
    places = _places([(source, target) for source, target, _ in edges], top)
    columns = len({x for x, _ in places.values()})
    largest = max((score for _, _, score in edges), default=1.0) or 1.0
    return Geometry(
        width=max((x for x, _ in places.values()), default=0.0) + WIDTH + MARGIN,
        height=max((y for _, y in places.values()), default=top) + HEIGHT + 2 * MARGIN + _depth(columns),
        nodes=places,
        edges=[
            (source, target, score, score / largest, _path(source, target, places))
            for source, target, score in reversed(edges)
        ],
    )


def circuit_svg(circuit: Circuit, title: str = "Circuit", max_edges: int = MAX_EDGES) -> str:
    """Draw a circuit; of a larger one the strongest edges, as its caption states.

    Args:
        circuit: its edges, the strongest first.
        title: the heading.
        max_edges: the most edges that are drawn.

    Returns:
        A standalone SVG document; every edge and node has a tooltip.
    """
    shown = [(*edge, score) for edge, score in zip(circuit.edges, circuit.scores, strict=True)][:max_edges]
    drawn = geometry(shown)
    width, height = max(drawn.width, 620.0), drawn.height
    of_all = "" if len(shown) == len(circuit.edges) else f", the strongest of {len(circuit.edges):,}"
    caption = f"{len(shown)} edges{of_all}; {len(circuit.heads)} heads in the circuit. Width: mean |edge score|."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="10.5" role="img">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="22" font-size="14" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="38" fill="{SOFT}">{escape(caption)}</text>',
        *_legend(),
        *(_edge(*edge) for edge in drawn.edges),
        *(_node(name, place) for name, place in drawn.nodes.items()),
    ]
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


def _column(name: str) -> int:
    """The layer; the input comes before the first, the logits after the last."""
    if name in ("input", "logits"):
        return -1 if name == "input" else 1_000_000
    return int(name[1:].split(".")[0])


def _places(edges: Sequence[tuple[str, str]], top: float) -> dict[str, Place]:
    """The middle of the left side of every node. Layers without nodes take no room."""
    columns: dict[int, list[str]] = defaultdict(list)
    for name in dict.fromkeys(node for source, target in edges for node in (source, node_of(target))):
        columns[_column(name)].append(name)
    tallest = max((sum(map(_is_head, names)) for names in columns.values()), default=0)
    row = top + HEIGHT + (tallest + 0.5) * DOWN
    places: dict[str, Place] = {}
    for number, key in enumerate(sorted(columns)):
        x = float(MARGIN + number * ACROSS)
        heads = sorted(filter(_is_head, columns[key]), key=lambda name: int(name.split(".h")[1]))
        raised = 0.5 * DOWN * (number % 2)  # so that an edge between heads seldom crosses the heads between them
        places |= {name: (x, row - (place + 1) * DOWN - raised) for place, name in enumerate(heads)}
        places |= {name: (x, row) for name in columns[key] if not _is_head(name)}
    return places


def _is_head(name: str) -> bool:
    return name.startswith("a")


def _depth(columns: float) -> float:
    """How far below the row an arc over so many columns reaches."""
    return min(DEEPEST, 16.0 * columns**0.6)


def kind_of(target: str) -> str:
    """Input of a head that an edge enters ("q", "k", "v"); "" for an MLP or the logits."""
    return target.rsplit(".", 1)[1] if _is_head(target) else ""


def edge_note(source: str, target: str, score: float) -> str:
    """An edge in words: "L3.H1 to L5.H0, q: 0.12"."""
    kind = kind_of(target)
    return f"{node_label(source)} to {node_label(node_of(target))}{f', {kind}' if kind else ''}: {score:.3g}"


def _path(source: str, target: str, places: dict[str, Place]) -> str:
    node = node_of(target)
    (x0, y0), (x1, y1) = places[source], places[node]
    if _is_head(node):
        x0, y1, bend = x0 + WIDTH, y1 + ENTRY[kind_of(target)], max(18.0, 0.45 * (x1 - x0 - WIDTH))
        curve = f"C{x0 + bend:.0f} {y0:.0f} {x1 - bend:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    elif _is_head(source):  # into the top of a node of the row
        x0, x1, y1 = x0 + WIDTH, x1 + WIDTH / 2, y1 - HEIGHT / 2
        bend = max(18.0, 0.5 * (x1 - x0))
        curve = f"C{x0 + bend:.0f} {y0:.0f} {x1:.0f} {(y0 + y1) / 2:.0f} {x1:.0f} {y1:.0f}"
    else:
        x0, x1, y0 = x0 + WIDTH / 2, x1 + WIDTH / 2, y0 + HEIGHT / 2
        low = y0 + _depth((x1 - x0) / ACROSS) / 0.75  # a cubic reaches three quarters of its control points
        curve = f"C{x0 + 10:.0f} {low:.0f} {x1 - 10:.0f} {low:.0f} {x1:.0f} {y0:.0f}"
    return f"M{x0:.0f} {y0:.0f}{curve}"


def _edge(source: str, target: str, score: float, part: float, path: str) -> str:
    return (
        f'<path d="{path}" fill="none" stroke="{COLOURS[kind_of(target)]}" '
        f'stroke-width="{0.7 + 4.3 * part:.2f}" stroke-opacity="{0.35 + 0.5 * part:.2f}"><title>'
        f"{escape(edge_note(source, target, score))}</title></path>"
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
