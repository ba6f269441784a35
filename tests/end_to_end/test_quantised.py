"""QLoRA: trainings of quantised models are left as they are, and are probed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.tiny_trainers import same_weights, trained_weights
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from headwatch import HeadWatchCallback, RunFolder, score_heads
from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save
from headwatch.model.read_only import ReadOnlyError, read_only_pass
from headwatch.probes import ProbeSet

pytest.importorskip("bitsandbytes")
KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4-bf16": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = build_tokenizer()
    size = ModelSize(n_layers=2, n_heads=4, n_kv_heads=2, d_model=64, d_mlp=128)
    return save(build_model(tokenizer, size), tokenizer, tmp_path_factory.mktemp("model"))


def quantised(folder: Path, kind: str) -> Any:
    config = BitsAndBytesConfig(**KINDS[kind])
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")


def train(folder: Path, kind: str, output: Path, callbacks: list[Any]) -> dict[str, torch.Tensor]:
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(10, 14) for b in range(20, 23)]
    trainer = SFTTrainer(
        model=quantised(folder, kind),
        args=SFTConfig(
            output_dir=str(output), max_steps=3, use_cpu=True, report_to="none", save_strategy="no", learning_rate=1e-2
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=callbacks,
    )
    trainer.train()
    return {name: weight for name, weight in trained_weights(trainer).items() if "lora" in name}


@pytest.mark.parametrize("kind", list(KINDS))
def test_same_adapter_with_and_without_the_callback(kind: str, folder: Path, tmp_path: Path) -> None:
    watch = HeadWatchCallback("addition", every=2, n_pairs=8)
    watched = train(folder, kind, tmp_path / "watched", [watch])
    assert same_weights(watched, train(folder, kind, tmp_path / "plain", []))
    assert RunFolder.open(tmp_path / "watched").steps == [0, 2, 3]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_pass_leaves_packed_weights_where_they_are(kind: str, folder: Path) -> None:
    model = quantised(folder, kind)
    before = {name: (p.data_ptr(), p.shape, getattr(p, "quant_state", None)) for name, p in model.named_parameters()}
    score_heads(model, ProbeSet.generate("addition", AutoTokenizer.from_pretrained(folder), n_pairs=4), steps=2)
    after = {name: (p.data_ptr(), p.shape, getattr(p, "quant_state", None)) for name, p in model.named_parameters()}
    assert before == after


def test_the_guard_notices_repacked_weights(folder: Path) -> None:
    model = quantised(folder, "nf4")
    weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ReadOnlyError, match=r"up_proj\.weight was changed"), read_only_pass(model):
        weight.data = weight.data.clone()
