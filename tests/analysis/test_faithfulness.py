"""Faithfulness, its curve and areas; on hand-written induction weights the known heads lead and beat random edges."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.induction_model import INDUCTION, PREVIOUS, induction_model, induction_probes
from helpers.tiny_models import random_pairs, tiny_model

from headwatch import (
    Anatomy,
    Circuit,
    EdgeScores,
    UserError,
    faithfulness,
    faithfulness_curve,
    patch_heads,
    scaled_heads,
    score_edges,
)
from headwatch.analysis.edge_ablation import run_circuits
from headwatch.analysis.faithfulness import SIZES, area, ratio_of_means
from headwatch.attribution.scores import Readings
from headwatch.circuits.circuit import Graph


@pytest.fixture(scope="module")
def induction() -> tuple[torch.nn.Module, EdgeScores]:
    model = induction_model()
    return model, score_edges(model, induction_probes(16, seed=1))


def circuit_of(model: torch.nn.Module, kept: np.ndarray) -> Circuit:
    anatomy = Anatomy.of(model)
    graph = Graph(anatomy.sources, anatomy.targets, anatomy.is_real().numpy())
    return Circuit.of_kept(kept.astype(float), kept, graph, 1, None)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2-biases", "gpt2"])
def test_the_full_circuit_has_1_and_the_empty_one_0(architecture: str) -> None:
    model = tiny_model(architecture, attention="eager")
    real, probes = Anatomy.of(model).is_real().numpy(), random_pairs(3)
    for metric in ("logit_diff", "kl"):
        assert faithfulness(model, probes, circuit_of(model, real), metric) == pytest.approx(1.0, abs=1e-6)
        assert faithfulness(model, probes, circuit_of(model, real & False), metric) == pytest.approx(0.0, abs=1e-6)


def test_a_circuit_of_another_model_is_refused() -> None:
    other = circuit_of(tiny_model("qwen2"), Anatomy.of(tiny_model("qwen2")).is_real().numpy())
    with pytest.raises(UserError, match=r"^circuit: edge .* does not exist in this model"):
        faithfulness(induction_model(), induction_probes(2), other)


def test_it_is_a_ratio_of_means() -> None:
    readings = Readings(torch.tensor([4.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([True, True]))
    values = np.array([[2.0, 2.0], [0.0, 1.0]])
    assert ratio_of_means(values, readings) == pytest.approx([(2.0 + 1.0) / (4.0 + 1.0), 0.0])
    draws = ratio_of_means(values, readings, np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert draws == pytest.approx(np.array([[0.5, 0.0], [1.0, 0.0]]))
    with pytest.raises(UserError, match="faithfulness is undefined"):
        ratio_of_means(values, Readings(torch.ones(2), torch.ones(2), readings.correct))


def test_areas_are_the_benchmarks() -> None:
    """The trapezoidal rule over its ten sizes, by hand."""
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9, 1.2, 1.1, 1.0, 1.0])
    by_hand = sum((b - a) * (u + v) / 2 for a, b, u, v in zip(SIZES, SIZES[1:], values, values[1:], strict=False))
    assert area(SIZES, values) == pytest.approx(by_hand)


def test_the_known_heads_lead(induction: tuple[torch.nn.Module, EdgeScores]) -> None:
    model, edges = induction
    probes = induction_probes(16)
    logits = model(probes.clean).logits[:, -1]
    assert torch.equal(logits.argmax(-1), probes.answers[:, 0])  # it completes every prompt
    exact, estimated = patch_heads(model, probes).per_pair.mean(0).abs(), edges.heads.mean().flatten().abs()
    for effects in (exact, estimated):
        order = effects.argsort(descending=True).tolist()
        assert {divmod(i, 4) for i in order[:1]} == {INDUCTION}
        assert effects[order[1]] < effects[order[0]] / 2
    small = Circuit.select(edges, top_n=6)
    assert INDUCTION in small.heads
    with torch.no_grad(), scaled_heads(model, [PREVIOUS]):  # induction needs the previous-token head
        off = model(probes.clean).logits[:, -1]
    assert (off.argmax(-1) == probes.answers[:, 0]).float().mean() < 0.5


def test_the_known_circuit_is_faithful(induction: tuple[torch.nn.Module, EdgeScores]) -> None:
    """Embedding -> previous-token head -> key of the induction head; embedding -> its query and value; -> logits."""
    model, _ = induction
    anatomy = Anatomy.of(model)
    known = {
        *(("input", f"a0.h0.{kind}") for kind in "qkv"),
        *(("input", f"a1.h0.{kind}") for kind in "qkv"),
        ("a0.h0", "a1.h0.k"),
        ("a1.h0", "logits"),
    }
    kept = np.zeros(anatomy.is_real().shape, np.bool_)
    for source, target in known:
        kept[anatomy.sources.index(source), anatomy.targets.index(target)] = True
    assert faithfulness(model, induction_probes(16), circuit_of(model, kept)) > 0.95
    kept[anatomy.sources.index("a1.h0"), -1] = False
    assert faithfulness(model, induction_probes(16), circuit_of(model, kept)) < 0.05


@pytest.mark.parametrize("method", ["top", "greedy", "ratio"])
def test_the_curve_dominates_random_circuits(induction: tuple[torch.nn.Module, EdgeScores], method: str) -> None:
    model, edges = induction
    curve = faithfulness_curve(
        model, induction_probes(16, seed=2), edges, (0.05, 0.1, 0.2, 0.5, 1.0), method=method, controls=6
    )
    # A large random circuit may hold the few edges of the mechanism by chance: it is as faithful then, and no more.
    assert (curve.value[:-1] > curve.random[:, :-1].mean(axis=0) + 0.2).all()
    assert (curve.value > curve.random.max(axis=0) - 0.01).all()
    assert curve.random[:, :2].max() < 0.01
    assert curve.value[-1] == pytest.approx(1.0, abs=1e-6)
    assert (curve.lower <= curve.value + 1e-9).all()
    assert (curve.upper >= curve.value - 1e-9).all()
    found = curve.to_json()
    assert found["cpr"] > max(found["random_cpr"])
    assert found["cpr"] > np.mean(found["random_cpr"]) + 0.2
    assert found["cmd"] < min(found["random_cmd"])
    assert curve.smallest(0.8) is curve.circuits[int(np.flatnonzero(curve.value >= 0.8)[0])]
    for k, circuit in enumerate(curve.circuits[:-1]):
        value = faithfulness(model, induction_probes(16, seed=2), circuit)
        assert value == pytest.approx(curve.value[k], abs=1e-9)


def test_controls_have_as_many_edges(induction: tuple[torch.nn.Module, EdgeScores], monkeypatch) -> None:
    model, edges = induction
    seen: list[torch.Tensor] = []

    def watch(model, probes, kept, metric, **options):
        seen.append(kept)
        return run_circuits(model, probes, kept, metric, **options)

    monkeypatch.setattr("headwatch.analysis.faithfulness.run_circuits", watch)
    faithfulness_curve(model, induction_probes(4), edges, (0.1, 0.3), controls=3, progress=lambda *_: None)
    counts = torch.cat(seen).flatten(1).sum(1).tolist()
    assert counts[:2] * 3 == counts[2:]


def test_sizes_must_grow(induction: tuple[torch.nn.Module, EdgeScores]) -> None:
    with pytest.raises(UserError, match="must be growing shares"):
        faithfulness_curve(induction[0], induction_probes(2), induction[1], (0.5, 0.1))


def test_pictures_of_the_curve_and_the_circuit(induction, tmp_path: Path) -> None:
    from xml.etree import ElementTree

    from headwatch.analysis.circuit_files import write_circuit
    from headwatch.analysis.circuit_report import CircuitOptions, family_circuits
    from headwatch.attribution import ScoringSettings

    model, _ = induction
    options = CircuitOptions(sizes=(0.05, 0.2, 1.0), controls=2)
    steps: list[tuple[str, int, int]] = []
    found = family_circuits(model, induction_probes(12), ScoringSettings(), options, lambda *step: steps.append(step))
    assert steps[-1] == ("induction", 9, 9)
    write_circuit(found[0], model, tmp_path / "induction", "hand-written", {})
    files = sorted((tmp_path / "induction").iterdir())
    names = ["circuit.json", "circuit.svg", "curve.json", "curve.svg", "graph.json", "settings.json"]
    assert [path.name for path in files] == names
    assert Circuit.from_json(files[0]).edges == found[0].circuit.edges
    for picture in (files[1], files[3]):
        ElementTree.parse(picture)
    assert (found[0].evaluated_on, len(found[0].edges.families)) == (6, 6)
