"""Scores in a notebook: one-line representations, rows for a pandas DataFrame, a heat map in HTML."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from headwatch.errors import UserError
from headwatch.model.head_names import head_name

STRONGEST = 3  # heads that a representation names
CELL = 14  # pixels of the heat map
POSITIVE, NEGATIVE = (11, 122, 111), (154, 100, 18)  # as gain and loss in the report


def strongest(means: ArrayLike, n: int = STRONGEST) -> str:
    """The heads of largest |mean score|, with it; means: [L, H].

    >>> strongest([[0.1, -2.0], [0.5, 0.0]], 2)
    'L0.H1 -2, L1.H0 +0.5'
    """
    values = np.asarray(means, np.float64)
    order = np.argsort(-np.abs(np.nan_to_num(values)), axis=None, kind="stable")[:n].tolist()
    return ", ".join(f"{head_name(*divmod(i, values.shape[1]))} {values.flat[i]:+.3g}" for i in order)


def shown_name(node: str) -> str:
    """A node of the edge graph as the report writes it.

    >>> [shown_name(node) for node in ("a17.h3", "a17.h3.q", "m4", "input")]
    ['L17.H3', 'L17.H3.q', 'm4', 'input']
    """
    layer, _, rest = node.removeprefix("a").partition(".h")
    head, _, kind = rest.partition(".")
    return f"{head_name(int(layer), int(head))}{'.' + kind if kind else ''}" if rest else node


def data_frame(columns: dict[str, Sequence[Any]]) -> Any:
    """The columns as a pandas DataFrame.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("to_pandas() needs pandas, which is not installed: pip install pandas") from error
    return pandas.DataFrame(columns)


def head_columns(per_pair: ArrayLike) -> dict[str, Sequence[Any]]:
    """One row per head of scores [N, L, H]: head, layer, index, mean, mean_abs, standard_error."""
    values = np.asarray(per_pair, np.float64)
    n, layers, heads = values.shape
    error = values.std(axis=0, ddof=1) / n**0.5 if n > 1 else np.full((layers, heads), np.nan)
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    return {
        "head": [head_name(*place) for place in places],
        "layer": [layer for layer, _ in places],
        "index": [head for _, head in places],
        "mean": values.mean(axis=0).ravel(),
        "mean_abs": np.abs(values).mean(axis=0).ravel(),
        "standard_error": error.ravel(),
    }


def heat_map(means: ArrayLike, title: str) -> str:
    """A table as HTML, layers across and heads down, coloured by sign and size; means: [L, H]."""
    values = np.asarray(means, np.float64)
    most = float(np.abs(np.nan_to_num(values)).max()) or 1.0
    layers, heads = values.shape
    size = f"width:{CELL}px;height:{CELL}px;padding:0"
    rows = []
    for head in range(heads):
        cells = [
            f'<td style="{size};background:{_colour(value, most)}" title="{head_name(layer, head)} {value:.3g}"></td>'
            for layer, value in enumerate(values[:, head].tolist())
        ]
        rows.append(f'<tr><th style="padding:0 4px;font-weight:400">{head}</th>{"".join(cells)}</tr>')
    across = "".join(f'<td style="padding:0">{layer if layer % 5 == 0 else ""}</td>' for layer in range(layers))
    table = f'<table style="border-collapse:separate;border-spacing:1px;font-size:9px">{"".join(rows)}'
    return f"<div>{title}</div>{table}<tr><th></th>{across}</tr></table><div>layer across, head down</div>"


def _colour(value: float, most: float) -> str:
    red, green, blue = POSITIVE if value > 0 else NEGATIVE
    opacity = 0.0 if value != value else min(1.0, abs(value) / most)
    return f"rgba({red},{green},{blue},{opacity:.2f})" if opacity else "rgba(128,128,128,0.10)"
