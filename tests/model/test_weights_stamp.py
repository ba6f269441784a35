"""The fingerprint of saved weights."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from headwatch.model.weights_stamp import weights_stamp


def test_other_weights_have_another_stamp_and_a_copy_has_the_same(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    one.mkdir()
    weights = {"a": torch.randn(100, 100), "b": torch.randn(10)}
    save_file(weights, one / "model.safetensors")
    shutil.copytree(one, copy)
    stamp = weights_stamp(one)
    assert stamp is not None
    assert weights_stamp(copy) == stamp
    (copy / "config.json").write_text("{}")
    assert weights_stamp(copy) == stamp
    save_file({name: value + 1e-3 for name, value in weights.items()}, copy / "model.safetensors")
    assert weights_stamp(copy) != stamp
    save_file({"b": torch.ones(1)}, one / "model-00002-of-00002.safetensors")
    assert weights_stamp(one) != stamp


def test_a_name_on_the_hub_has_none(tmp_path: Path) -> None:
    assert weights_stamp("Org/Model") is None
    assert weights_stamp(tmp_path) is None
