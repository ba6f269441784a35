"""The files of a family's circuit: written when it is complete, and read back by a command that was stopped."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headwatch.analysis.circuit_report import CircuitOptions, FamilyCircuit
from headwatch.attribution.settings import ScoringSettings
from headwatch.circuits.curve_drawing import curve_svg
from headwatch.circuits.drawing import circuit_svg
from headwatch.circuits.graph_json import write_graph
from headwatch.circuits.selection import graph_of
from headwatch.io.atomic import write_atomic
from headwatch.io.plain_json import plain
from headwatch.model.anatomy import Anatomy
from headwatch.model.weights_stamp import weights_stamp
from headwatch.probes import ProbeSet
from headwatch.version import __version__

SETTINGS, CURVE = "settings.json", "curve.json"


def described(
    name: str, dtype: Any, pairs: ProbeSet, scoring: ScoringSettings, options: CircuitOptions
) -> dict[str, Any]:
    """What defines a family's circuit, as plain values.

    Args:
        name: the model, whose weights have a stamp: another training may have replaced them.
        dtype: in which it is loaded.
        pairs: of the family.
        scoring: metric and path.
        options: of the selection.
    """
    return dict(
        plain(
            {
                "headwatch": __version__,
                "model": Path(name).name,
                "weights": weights_stamp(name),
                "dtype": str(dtype),
                "pairs": pairs.fingerprint,
                **{key: getattr(scoring, key) for key in ("metric", "steps", "alphas")},
                **asdict(options),
            }
        )
    )


def kept_circuit(folder: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """The row (`FamilyCircuit.to_json`) of the circuit in the folder; None if it is another one, or incomplete."""
    try:
        if json.loads((folder / SETTINGS).read_text(encoding="utf-8")) != about:
            return None
        row = json.loads((folder / CURVE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) else None


def write_circuit(each: FamilyCircuit, model: nn.Module, folder: Path, name: str, about: dict[str, Any]) -> None:
    """Write circuit.json, graph.json (EAP-IG's format), curve.json and drawings, and settings.json last.

    Args:
        each: the circuit.
        model: the model.
        folder: of the family.
        name: the model's name, for the headings.
        about: of `described`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)  # until all files are those of this circuit
    anatomy, graph = Anatomy.of(model), graph_of(each.edges)
    kept = each.circuit.kept(graph.sources, graph.targets)
    mean = each.edges.mean().numpy().astype(np.float64)
    each.circuit.to_json(folder / "circuit.json")
    write_graph(folder / "graph.json", mean, kept, graph, anatomy.d_model, anatomy.layers[0].parallel)
    _write(folder / CURVE, json.dumps(each.to_json(), indent=1) + "\n")
    for file, svg in (
        ("circuit.svg", circuit_svg(each.circuit, f"{name}, {each.family}")),
        ("curve.svg", curve_svg(each.curve.to_json(), f"{name}, {each.family}: faithfulness")),
    ):
        _write(folder / file, svg)
    _write(folder / SETTINGS, json.dumps(about, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode())
