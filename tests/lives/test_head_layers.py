"""Hybrid models: heads that do not exist are tested and counted nowhere."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.planted_history import BASE, H, L, PlantedHistory, shares

from headwatch.analysis.event_patching import heads_to_patch
from headwatch.errors import UserError
from headwatch.lives.head_layers import HeadLayers
from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, plotly, sentences
from headwatch.report.head_page_data import ranked_heads
from headwatch.stats import EvidenceSettings

LAYERS, ALL = [1, 3, 4], 6  # layers with heads, of a model of six
SETTINGS = {"equal weights": EvidenceSettings(test="t", weights="equal", confirm="next"), "default": EvidenceSettings()}
COURSE = [BASE, shares(h23=0.2), shares(h23=0.2, h00=0.01), shares(h23=0.0, h00=0.01), shares(h23=0.0, h00=0.3)]


def spread(values: np.ndarray) -> np.ndarray:
    """[..., ALL, H] of [..., L, H], 0 in layers without heads."""
    whole = np.zeros((*values.shape[:-2], ALL, H), values.dtype)
    whole[..., LAYERS, :] = values
    return whole


def histories(settings: EvidenceSettings) -> tuple[HeadHistory, HeadHistory]:
    """The same run as that of a model of L layers, and as that of a hybrid with them among ALL layers."""
    run = PlantedHistory(seed=4, settings=settings)
    hybrid = HeadHistory(ALL, H, settings=settings, family="addition", layers=LAYERS)
    for step, share in enumerate(COURSE):
        scores, clean = run.scores(share), -0.5 * run.gap
        run.history.add(10 * step, scores, clean, clean + run.gap)
        hybrid.add(10 * step, spread(scores), clean, clean + run.gap)
    return run.history, hybrid


@pytest.mark.parametrize("name", SETTINGS)
def test_a_hybrid_has_the_statistics_of_its_heads_alone(name: str) -> None:
    plain, hybrid = histories(SETTINGS[name])
    assert {"emerged", "dropped", "pruned"} <= {event.kind for event in plain.events}
    assert [(e.kind, e.step, LAYERS[e.layer], e.head, e.q_value, e.status) for e in plain.events] == [
        (e.kind, e.step, e.layer, e.head, e.q_value, e.status) for e in hybrid.events
    ]
    assert hybrid.latest_scalars().keys() == plain.latest_scalars().keys()
    for key, value in plain.latest_scalars().items():
        if key != "emergence_centre":  # of the layers of the model
            assert hybrid.latest_scalars()[key] == pytest.approx(value, nan_ok=True), key
    for array in ("state", "share", "q_value", "detectable", "strengthened", "importance", "importance_high"):
        found = getattr(hybrid, array)[:, LAYERS]
        assert np.array_equal(found, getattr(plain, array), equal_nan=found.dtype.kind == "f"), array
    assert np.array_equal(hybrid.change().p_value[1:, LAYERS], plain.change().p_value[1:])
    assert hybrid.entropy() == plain.entropy()
    assert hybrid.pairs_needed() == plain.pairs_needed()
    assert [sum(at) for at in zip(*hybrid.counts().values(), strict=True)] == [L * H] * len(COURSE)
    ours, theirs = hybrid.effect_interval(), plain.effect_interval()
    assert ours is not None
    assert theirs is not None
    assert np.array_equal(ours[0][LAYERS], theirs[0])


def test_absent_heads_are_in_no_view() -> None:
    plain, hybrid = histories(EvidenceSettings())
    absent = [layer for layer in range(ALL) if layer not in LAYERS]
    for figure in (figure_data.activation_frequency(hybrid)["frequency"], figure_data.effect_map(hybrid)["effect"]):
        assert all(value is None for layer in absent for value in figure[layer])
        assert all(value is not None for layer in LAYERS for value in figure[layer])
    drawn = plotly.draw(figure_data.all_figures(hybrid))
    assert all(row[absent[0]] is None for row in drawn["activation_frequency"]["data"][0]["z"])
    renamed = [
        re.sub(r"L(\d+)\.", lambda m: f"L{LAYERS[int(m[1])]}.", line) for line in sentences.summary(plain)["sentences"]
    ]
    assert sentences.summary(hybrid)["sentences"] == renamed
    first = HeadHistory(ALL, H, layers=LAYERS)
    run = PlantedHistory(seed=4)
    first.add(0, spread(run.scores(BASE)), -0.5 * run.gap, 0.5 * run.gap)
    assert f"of {L * H} heads" in sentences.headline(first)
    for heads in (ranked_heads([hybrid])[0], heads_to_patch(first, "all", 0.0)):
        assert sorted(heads) == [(layer, head) for layer in LAYERS for head in range(H)]


def test_circuit_membership_counts_the_heads_that_exist() -> None:
    history = HeadHistory(ALL, H, rule="circuit", layers=LAYERS)
    history.add_membership(0, spread(BASE > 0.1), spread(BASE))
    assert sum(history.latest_counts().values()) == L * H
    plain = HeadHistory(L, H, rule="circuit")
    plain.add_membership(0, BASE > 0.1, BASE)
    assert history.latest_scalars()["importance_entropy"] == plain.latest_scalars()["importance_entropy"]


def test_without_signal_the_shares_of_all_heads_are_unknown() -> None:
    history = HeadHistory(ALL, H, layers=LAYERS)
    history.add(0, np.zeros((4, ALL, H)), np.zeros(4), np.zeros(4))
    assert np.isnan(history.share).all()


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [6], [-1]])
def test_impossible_layers_are_refused(layers: list[int]) -> None:
    with pytest.raises(UserError, match="increasing numbers of layers from 0 to 5"):
        HeadLayers((ALL, H), layers)


@pytest.mark.parametrize("layers", [[], [2, 1], [6], "all"])
def test_a_manifest_with_impossible_layers_is_refused(layers: object, tmp_path: Path) -> None:
    model = {"n_layers": ALL, "n_heads": H, "layers_with_heads": layers}
    RunFolder.create(tmp_path, {"model": model, "probes": {"families": ["addition"], "n_pairs": 4}})
    with pytest.raises(UserError, match="damaged"):
        _ = RunFolder.open(tmp_path).manifest
