"""Scores in a notebook: short representations, DataFrames, the heat map."""

from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import random_pairs, tiny_model

import headwatch as hw


@pytest.fixture(scope="module")
def edges() -> Any:
    return hw.score_edges(tiny_model("llama"), random_pairs(8), steps=2)


def test_representations_are_short_and_name_the_strongest_heads(edges: Any) -> None:
    heads, circuit = edges.heads, hw.Circuit.select(edges, 0.3)
    _, n_layers, n_heads = heads.per_pair.shape
    means = heads.mean()
    layer, head = divmod(int(means.abs().argmax()), n_heads)
    for shown in (repr(heads), repr(edges), repr(circuit)):
        assert len(shown) < 200
        assert "\n" not in shown
    assert f"strongest: L{layer}.H{head} {float(means[layer, head]):+.3g}" in repr(heads)
    assert f"8 pairs of custom, {n_layers} layers x {n_heads} heads" in repr(heads)
    assert f"{int(edges.is_real.sum()):,} edges" in repr(edges)
    assert f"{len(circuit.edges)} edges, {len(circuit.heads)} of {n_layers * n_heads} heads" in repr(circuit)


def test_representations_of_patches_and_anatomy_are_short() -> None:
    model = tiny_model("llama")
    found = hw.patch_heads(model, random_pairs(8), ["L0.H1", "a1.h2", "1.0"])
    effects = found.per_pair.mean(0)
    place = int(effects.abs().argmax())
    name = ("L0.H1", "L1.H2", "L1.H0")[place]
    assert repr(found).startswith("HeadPatches(3 heads on 8 pairs of custom, logit_diff; strongest: ")
    assert f"strongest: {name} {float(effects[place]):+.3g}" in repr(found)
    shape = hw.Anatomy.of(model)
    assert repr(shape).startswith(f"Anatomy(LlamaForCausalLM: {shape.n_layers} layers x {shape.n_heads} heads, ")
    assert max(len(repr(each)) for each in (found, shape)) < 200
    pytest.importorskip("pandas")
    table = found.to_pandas().set_index("head")
    assert table.loc["L1.H2", "noising"] == pytest.approx(float(found.noising[:, 1].mean()))
    assert list(table.columns) == ["layer", "index", "noising", "denoising"]


def test_data_frames(edges: Any) -> None:
    pytest.importorskip("pandas")
    table = edges.heads.to_pandas().set_index("head")
    assert table.loc["L1.H2", "mean"] == pytest.approx(float(edges.heads.mean()[1, 2]))
    own = edges.heads.per_pair[:, 1, 2].double().numpy()
    assert table.loc["L1.H2", "standard_error"] == pytest.approx(own.std(ddof=1) / np.sqrt(8))
    assert len(table) == edges.heads.per_pair[0].numel()
    strongest = edges.to_pandas()
    assert len(strongest) == int(edges.is_real.sum())
    assert strongest["mean_abs"].is_monotonic_decreasing
    assert strongest["source"].str.match(r"^(input|m\d+|L\d+\.H\d+)$").all()
    assert len(hw.Circuit.select(edges, 5).to_pandas()) <= 5


def test_without_pandas_it_is_named(edges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(hw.UserError, match="pip install pandas"):
        edges.heads.to_pandas()


def test_heat_map_has_one_cell_per_head(edges: Any) -> None:
    shown = edges.heads._repr_html_()
    assert shown.count("title=") == edges.heads.per_pair[0].numel()
    assert 'title="L1.H2 ' in shown
    assert "rgba(11,122,111,1.00)" in shown or "rgba(154,100,18,1.00)" in shown  # the largest
