"""Models with recurrent or convolutional layers: trained with the callback, patched, and their absent heads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.all_models import small_config, small_model
from helpers.tiny_models import largest_error, random_pairs
from helpers.tiny_trainers import same_weights, sft_trainer, trained_weights
from transformers import AutoModelForCausalLM

from headwatch import Anatomy, HeadHistory, HeadWatchCallback, RunFolder, UserError
from headwatch.analysis.edge_ablation import run_circuits
from headwatch.analysis.interventions import scaled_heads
from headwatch.analysis.naive_patching import naive_patch_heads
from headwatch.analysis.patching import patch_heads
from headwatch.demo.tiny_model import build_tokenizer
from headwatch.errors import UnsupportedModelError

COUNTED = ("inactive", "retained", "dropped", "emerged", "pruned", "re_emerged")


def saved(model_type: str, folder: Path) -> Path:
    tokenizer = build_tokenizer()
    config: Any = small_config(model_type)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", ["lfm2", "qwen3_next"])
def test_a_hybrid_in_training(model_type: str, tmp_path: Path) -> None:
    model = saved(model_type, tmp_path / "model")
    weights = []
    for folder in ("watched", "plain"):
        callbacks = [HeadWatchCallback("addition", every=2, n_pairs=8)] if folder == "watched" else []
        trainer = sft_trainer(model, tmp_path / folder, callbacks, bf16=True)
        trainer.train()
        weights.append(trained_weights(trainer))
    assert same_weights(*weights)
    run = RunFolder.open(tmp_path / "watched")
    assert run.steps == [0, 2, 4, 5]
    whole = {i for i, layer in enumerate(Anatomy.of(trainer.model).layers) if layer.whole}
    assert whole
    anatomy = Anatomy.of(trainer.model)
    assert run.manifest["model"]["layers_with_heads"] == anatomy.layers_with_heads
    history = HeadHistory.from_run(tmp_path / "watched", "addition")
    assert history.total_heads == (anatomy.n_layers - len(whole)) * anatomy.n_heads
    assert sum(run.scalars()[-1][f"addition/{state}"] for state in COUNTED) == history.total_heads
    assert not {event.head[0] for event in history.events} & whole


def test_patching_of_a_hybrid_equals_the_naive_reference() -> None:
    model, probes = small_model("lfm2"), random_pairs(3)
    found = patch_heads(model, probes)
    expected = naive_patch_heads(model, probes)
    for name in ("noising", "denoising"):
        assert largest_error(getattr(found, name), getattr(expected, name)) < 1e-6  # norms compute in float32
    absent = [column for column, (layer, _) in enumerate(found.heads) if Anatomy.of(model).layers[layer].whole]
    assert absent
    assert found.noising is not None
    assert found.noising[:, absent].abs().max() < 1e-12


def test_absent_heads_cannot_be_scaled_and_circuits_not_run_alone() -> None:
    model, probes = small_model("lfm2"), random_pairs(2)
    with pytest.raises(UserError, match="layer 0 has no attention heads"), scaled_heads(model, [(0, 1)]):
        pass
    with pytest.raises(UnsupportedModelError, match="circuits cannot be run alone"):
        run_circuits(model, probes, [])
