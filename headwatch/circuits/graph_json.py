"""Circuits in the JSON of EAP-IG's and the Mechanistic Interpretability Benchmark's `Graph.from_json`."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from headwatch.circuits.circuit import Bools, Floats, Graph


def graph_json(scores: Floats, kept: Bools, graph: Graph, d_model: int, parallel: bool = False) -> dict[str, Any]:
    """All real edges with their scores, and which of them are in the circuit.

    Args:
        scores: mean edge score, [S, R].
        kept: the circuit's edges, bool [S, R].
        graph: rows and columns.
        d_model: M.
        parallel: whether MLP and attention of a layer read the same vector.

    Returns:
        {"cfg", "nodes": {name: {"in_graph"}}, "edges": {"a0.h4->m3", "a0.h4->a1.h0<q>": {"score", "in_graph"}}}.
    """
    layers, heads = graph.shape
    nodes = {name: {"in_graph": bool(row.any())} for name, row in zip(graph.sources, kept, strict=True)}
    edges = {
        f"{graph.sources[s]}->{edge_target(graph.targets[r])}": {
            "score": float(scores[s, r]),
            "in_graph": bool(kept[s, r]),
        }
        for s, r in np.argwhere(graph.is_real)
    }
    cfg = {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": parallel, "d_model": d_model}
    return {"cfg": cfg, "nodes": {**nodes, "logits": {"in_graph": True}}, "edges": edges}


def edge_target(target: str) -> str:
    """A target as these tools name it.

    >>> edge_target("a3.h1.q"), edge_target("m3")
    ('a3.h1<q>', 'm3')
    """
    if not target.startswith("a"):
        return target
    node, kind = target.rsplit(".", 1)
    return f"{node}<{kind}>"


def write_graph(path: str | os.PathLike[str], *args: Any, **options: Any) -> None:
    """Write `graph_json(...)` to a file."""
    Path(path).write_text(json.dumps(graph_json(*args, **options)) + "\n", encoding="utf-8")
