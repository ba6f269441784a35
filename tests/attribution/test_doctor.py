"""`headwatch doctor`: entries that fit are found, entries that do not are refused, also by the order of heads."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.all_models import TYPES, small_model
from helpers.generated import block
from helpers.tiny_models import largest_error, random_pairs, tiny_model
from transformers import AutoConfig, Qwen3Config

from headwatch import Anatomy, UnsupportedModelError, score_edges
from headwatch.attribution.doctor import diagnose, entry, trial
from headwatch.cli import main
from headwatch.model.layouts import LAYOUTS, REFUSED, Layout
from headwatch.model.precision import KeepFloat64
from headwatch.model.reduced import random_model, reduced

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
# Types whose entries differ in a way that no other test covers; the others are slow tests, and in benchmarks/models.py.
QUICK = ("cohere2", "granitemoehybrid", "granitemoeshared", "lfm2", "llama4_text", "phi", "qwen3_next")


@pytest.mark.parametrize(
    "model_type",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in TYPES if name not in QUICK)],
)
def test_a_listed_type_is_exact(model_type: str) -> None:
    found = diagnose(small_model(model_type))
    assert found.supported
    assert found.best.fits, found.best.problem
    assert found.best.error is not None


@pytest.mark.parametrize(("block_name", "names"), [("models", LAYOUTS), ("refused", REFUSED)])
def test_the_page_has_a_row_for_every_type(block_name: str, names: dict[str, Any]) -> None:
    assert re.findall(r"^\| `([\w-]+)`", block(PAGE, block_name), flags=re.MULTILINE) == sorted(names)


@pytest.mark.parametrize("model_type", ["lfm2", "qwen3_next"])
def test_layers_without_heads_are_one_node(model_type: str) -> None:
    """Padded pairs in float32; their absent heads have no edges and no scores."""
    model, probes = small_model(model_type), random_pairs(4, side="both")
    whole = [index for index, layer in enumerate(Anatomy.of(model).layers) if layer.whole]
    assert whole
    with KeepFloat64():
        expected = score_edges(model, probes, steps=2).per_pair
    edges = score_edges(model.float(), probes, steps=2)
    assert largest_error(edges.per_pair, expected) < 2e-4  # the naive reference in float32: 4e-5
    for layer in whole:
        rows = [index for index, name in enumerate(edges.sources) if name.startswith(f"a{layer}.")]
        assert not edges.is_real[rows].any()
        assert not edges.heads.per_pair[:, layer].any()
        assert edges.per_pair[:, edges.sources.index(f"m{layer}")].any()


@pytest.mark.parametrize("model_type", ["qwen3", "phi", "gpt_neox", "starcoder2", "phi3"])
def test_the_entry_of_an_unknown_type_is_found(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its own entry and those equal to it; Llama's names, others' names, another order, another norm."""
    model, own = small_model(model_type), LAYOUTS[model_type]
    for other in [other for other, layout in LAYOUTS.items() if layout == own]:
        monkeypatch.delitem(LAYOUTS, other)
    with pytest.raises(UnsupportedModelError, match="headwatch doctor"):
        Anatomy.of(model)
    found = diagnose(model)
    assert not found.supported
    assert found.best.fits, found.best.problem
    expected = replace(own, parallel=True) if isinstance(own.parallel, str) else own
    assert found.best.layout == expected
    assert model_type not in LAYOUTS


def test_a_wrong_order_of_heads_does_not_fit() -> None:
    """All sums are right with a wrong order of a fused projection's rows, but the names of edges are not."""
    wrong = trial(small_model("gpt_neox"), "gpt_neox", replace(LAYOUTS["gpt_neox"], fused="stacked"))
    assert wrong.error is not None
    assert wrong.error < 1e-12
    assert "order of heads: query 1 of layer 0 changes the output of heads 0" in str(wrong.problem)


@pytest.mark.parametrize("roles", [("k_proj", "q_proj", "v_proj"), ("q_proj", "v_proj", "k_proj")])
def test_swapped_projections_do_not_fit(roles: tuple[str, str, str]) -> None:
    model = random_model(reduced(AutoConfig.for_model("llama", num_key_value_heads=32)))
    assert "order of heads" in str(trial(model, "llama", Layout(qkv=roles)).problem)


@pytest.mark.parametrize("change", [{"norm": "rms+1"}, {"parallel": True}, {"mlp_norm": "input_layernorm"}])
def test_a_wrong_entry_does_not_fit(change: dict[str, Any]) -> None:
    assert not trial(tiny_model("llama", attention="eager"), "llama", replace(Layout(), **change)).fits


def test_entries_are_code() -> None:
    for layout in LAYOUTS.values():
        assert eval(entry(layout), {"Layout": Layout}) == layout


def test_keep_float64_leaves_other_types_alone() -> None:
    with KeepFloat64():
        for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
            x = torch.ones(2, dtype=dtype)
            assert x.float().dtype == x.to(torch.float32).dtype == expected
            assert torch.softmax(x, -1, dtype=torch.float32).dtype == expected
        assert torch.ones(2, dtype=torch.float64).to(torch.bfloat16).dtype == torch.bfloat16


def test_command_with_a_folder_that_has_only_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Qwen3Config().save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("supported, and exact\n")
    monkeypatch.delitem(LAYOUTS, "qwen3")
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["supported"], found["fits"], found["best"]["layout"]) == (False, True, "Layout()")
    assert found["best"]["error"] < 1e-12


def test_command_says_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AutoConfig.for_model("deepseek_v3").save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "not supported: its heads read keys and values from a shared compressed vector" in out
    assert "should have model.layers.0.self_attn.q_proj" in out


def test_command_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
