"""The paper's circuit rule: keep the top-n edges, prune edges not on an input-to-logits path, return the heads."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headwatch.errors import UserError
from headwatch.model.display import data_frame, shown_name, strongest

if TYPE_CHECKING:  # circuits are plain numpy: comparing two of them needs no torch
    from headwatch.attribution.scores import EdgeScores

TOP_N = 0.027  # the paper's 5000 edges of Qwen2.5-Math-1.5B's 183,555

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Graph:
    """Names of the sources and targets, and which edges exist (attribution.md, "Definitions").

    Attributes:
        sources: S names, input first, in the order in which the model computes them.
        targets: R names.
        is_real: bool [S, R].
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    is_real: Bools

    @property
    def shape(self) -> tuple[int, int]:
        """(L, H)."""
        layers = sum(name.startswith("m") for name in self.sources)
        return layers, (len(self.sources) - 1) // layers - 1

    def target_nodes(self) -> NDArray[np.int64]:
        """Index of each target's node, [R]: a head's q, k and v are one node; the logits are node S."""
        place = {name: index for index, name in enumerate(self.sources)}
        nodes = [place.get(name.rsplit(".", 1)[0] if name[0] == "a" else name, len(place)) for name in self.targets]
        return np.array(nodes)


@dataclass(frozen=True)
class CircuitSettings:
    """The circuit rule.

    Attributes:
        top_n: a number of edges (5000), or below 1 a share of the real edges (0.027).
        tau: drop kept edges below this share of the largest score; a negative number -x is the absolute threshold x;
            None drops none. The paper's "tau = 0.1" does not state which.

    Raises:
        UserError: a value is out of range.
    """

    top_n: float = TOP_N
    tau: float | None = None

    def __post_init__(self) -> None:
        validate_rule(self.top_n, self.tau)


def validate_rule(top_n: float, tau: float | None) -> None:
    """Check the values of `CircuitSettings`.

    Raises:
        UserError: a value is out of range, with its name.
    """
    is_number = isinstance(top_n, Real) and not isinstance(top_n, bool) and top_n > 0
    if not is_number or not (top_n < 1 or float(top_n).is_integer()):
        raise UserError(f"top_n={top_n!r} must be a number of edges (5000) or a share of them below 1 (0.027)")
    if tau is not None and (not isinstance(tau, Real) or isinstance(tau, bool) or not tau < 1):
        raise UserError(f"tau={tau!r} must be a share of the largest score below 1, or negative for an absolute value")


@dataclass(frozen=True, repr=False)
class Circuit:
    """The edges kept by the circuit rule, and the attention heads on them.

    Attributes:
        edges: (source, target) names, the strongest first.
        scores: mean |edge score| of each edge.
        importance: [L, H], I(l, h) = sum of |score| over kept edges out of the head, normalised to sum 1 (paper).
        top_n, tau: the rule, see `CircuitSettings`.
    """

    edges: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]
    importance: Floats
    top_n: float
    tau: float | None

    def __repr__(self) -> str:
        layers, heads = self.importance.shape
        shape = f"{len(self.edges):,} edges, {len(self.heads)} of {layers * heads} heads"
        return f"Circuit({shape}, top_n={self.top_n:g}; strongest: {strongest(self.importance)})"

    def to_pandas(self) -> Any:
        """A DataFrame of one row per edge, the strongest first: source, target, score.

        Raises:
            UserError: pandas is not installed.
        """
        sources, targets = ([shown_name(edge[side]) for edge in self.edges] for side in (0, 1))
        return data_frame({"source": sources, "target": targets, "score": list(self.scores)})

    @property
    def heads(self) -> frozenset[tuple[int, int]]:
        """(layer, head) of every attention head that is a node of the circuit."""
        names = {source for source, _ in self.edges if source[0] == "a"}
        return frozenset((int(layer), int(head)) for layer, head in (name[1:].split(".h") for name in names))

    @classmethod
    def select(cls, edges: "EdgeScores", top_n: float = TOP_N, tau: float | None = None) -> "Circuit":
        """Keep the top-n edges by mean |score| over the pairs, then prune nodes without a path from input to logits.

        Args:
            edges: scored edges.
            top_n, tau: see `CircuitSettings`.

        Raises:
            UserError: top_n or tau is out of range.
        """
        graph = Graph(edges.sources, edges.targets, edges.is_real.numpy())
        return cls.of_matrix(edges.mean_abs().numpy().astype(np.float64), graph, top_n, tau)

    @classmethod
    def of_matrix(cls, strength: Floats, graph: Graph, top_n: float = TOP_N, tau: float | None = None) -> "Circuit":
        """`select`, from a matrix of mean |edge score|, [S, R]."""
        return cls.of_kept(strength, kept_edges(strength, graph, top_n, tau), graph, top_n, tau)

    @classmethod
    def of_kept(cls, strength: Floats, kept: Bools, graph: Graph, top_n: float, tau: float | None) -> "Circuit":
        """The circuit of these edges, bool [S, R]; strength: mean |edge score|, [S, R]."""
        places = np.argwhere(kept)
        places = places[np.argsort(-strength[kept], kind="stable")]
        return cls(
            edges=tuple((graph.sources[s], graph.targets[r]) for s, r in places),
            scores=tuple(float(strength[s, r]) for s, r in places),
            importance=head_importance(strength, kept, graph),
            top_n=top_n,
            tau=tau,
        )

    def kept(self, sources: Sequence[str], targets: Sequence[str]) -> Bools:
        """Which edges are in the circuit, bool [S, R].

        Raises:
            UserError: an edge that does not exist in a model with these sources and targets.
        """
        rows = {name: row for row, name in enumerate(sources)}
        columns = {name: column for column, name in enumerate(targets)}
        kept = np.zeros((len(rows), len(columns)), np.bool_)
        for source, target in self.edges:
            if source not in rows or target not in columns:
                raise UserError(
                    f"circuit: edge {source} -> {target} does not exist in this model ({len(rows)} sources, "
                    f"{len(columns)} targets); give a circuit of this model"
                )
            kept[rows[source], columns[target]] = True
        return kept

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the circuit to a file."""
        record: dict[str, Any] = {
            "edges": [[source, target, score] for (source, target), score in zip(self.edges, self.scores, strict=True)],
            "importance": self.importance.tolist(),
            "top_n": self.top_n,
            "tau": self.tau,
        }
        Path(path).write_text(json.dumps(record) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "Circuit":
        """Read a circuit that `to_json` wrote.

        Raises:
            UserError: the file holds no circuit.

        >>> Circuit((("input", "logits"),), (1.0,), np.zeros((1, 2)), top_n=1, tau=None).to_json("circuit.json")
        >>> Circuit.from_json("circuit.json").edges
        (('input', 'logits'),)
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                edges=tuple((source, target) for source, target, _ in record["edges"]),
                scores=tuple(float(score) for _, _, score in record["edges"]),
                importance=np.array(record["importance"], np.float64),
                top_n=record["top_n"],
                tau=record["tau"],
            )
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            raise UserError(f"{path} {reason}: give a file that Circuit.to_json wrote") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a circuit written by Circuit.to_json ({error})") from error


def kept_edges(strength: Floats, graph: Graph, top_n: float, tau: float | None) -> Bools:
    """The edges that the circuit rule keeps, bool [S, R].

    Args:
        strength: mean |edge score|, [S, R].
        graph: its rows and columns.
        top_n, tau: see `CircuitSettings`.
    """
    validate_rule(top_n, tau)
    scores = np.where(graph.is_real, strength, -np.inf)
    n = n_kept(top_n, int(graph.is_real.sum()))
    threshold = np.partition(scores, -n, axis=None)[-n]
    kept = (scores >= threshold) & (scores > 0)
    if tau is not None:
        kept &= scores >= (tau * scores.max() if tau >= 0 else -tau)
    return pruned(kept, graph)


def n_kept(top_n: float, n_real: int) -> int:
    """The number of edges that top_n keeps, out of the real ones."""
    return min(n_real, int(top_n) if top_n >= 1 else max(1, round(top_n * n_real)))


def pruned(kept: Bools, graph: Graph) -> Bools:
    """Drop edges of nodes without a path from the input or without a path to the logits."""
    n_sources = len(graph.sources)
    nodes = graph.target_nodes()
    between = np.zeros((n_sources, n_sources + 1), np.bool_)  # node to node
    sources, targets = np.nonzero(kept)
    between[sources, nodes[targets]] = True
    from_input = np.zeros(n_sources + 1, np.bool_)
    from_input[0] = True
    for node in range(n_sources):  # sources are in the order of computation, so one sweep is enough
        if from_input[node]:
            from_input |= between[node]
    to_logits = np.zeros(n_sources + 1, np.bool_)
    to_logits[-1] = True
    for node in reversed(range(n_sources)):
        to_logits[node] = bool((between[node] & to_logits).any())
    connected = from_input & to_logits
    return kept & connected[:n_sources, None] & connected[nodes][None, :]


def heads_with_edges(kept: Bools, graph: Graph) -> Bools:
    """Heads that are the source of a kept edge, bool [L, H]; kept: bool [S, R]."""
    layers, heads = graph.shape
    return np.asarray(kept.any(axis=1))[1:].reshape(layers, heads + 1)[:, :heads]


def head_importance(strength: Floats, kept: Bools, graph: Graph) -> Floats:
    """I(l, h) of `Circuit.importance`, [L, H]; strength, kept: [S, R]."""
    layers, heads = graph.shape
    rows = np.where(kept, np.abs(strength), 0).sum(1)[1:].reshape(layers, heads + 1)[:, :heads]
    total = rows.sum()
    return rows / total if total > 0 else rows
