"""Real trainers on a model of 30,000 parameters: a run takes about a second. For tests of whole runs.

Everything that draws random numbers is on (attention dropout, LoRA dropout, sampled completions), so that a run which
is disturbed in any way ends with other weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainerCallback

from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save

SIZE = ModelSize(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_mlp=48)

# Logged, but of the clock and not of the training.
CLOCK = ("runtime", "per_second", "step_time", "/sampling/", "profiling/", "memory")


def save_tiny_model(folder: Path) -> Path:
    """An untrained Qwen2 with dropout and its tokenizer, as from_pretrained reads them."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, SIZE)
    model.config.attention_dropout = 0.1
    return save(model, tokenizer, folder)


def load(model: Path, quantised: bool = False) -> Any:
    """The saved model in float32; or in 4 bits, packed into float32, since FSDP2 shards only floating-point tensors."""
    if not quantised:
        return AutoModelForCausalLM.from_pretrained(model)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(model, quantization_config=four_bits, device_map="cpu")


def sft_trainer(model: Path, output: Path, callbacks: Sequence[TrainerCallback] = (), **changes: Any) -> Trainer:
    """An SFTTrainer on sums written out, 5 steps of 4 rows; see `_arguments` for what `changes` may change."""
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(10, 14) for b in range(20, 25)]
    quantised = bool(changes.get("qlora"))
    arguments, peft_config = _arguments(output, changes)
    return SFTTrainer(
        model=load(model, quantised),
        args=SFTConfig(**{"max_steps": 5, "max_length": 32, **arguments}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=peft_config,
        callbacks=list(callbacks),
    )


def grpo_trainer(model: Path, output: Path, callbacks: Sequence[TrainerCallback] = (), **changes: Any) -> Trainer:
    """A GRPOTrainer, 4 steps of one prompt and 4 completions of up to 6 tokens; `changes` as for sft_trainer."""
    from trl import GRPOConfig, GRPOTrainer

    def checksum(completions: list[str], **_: Any) -> list[float]:
        """A reward that another token almost always changes."""
        return [sum(map(ord, text)) % 97 / 97 for text in completions]

    rows = [{"prompt": f"{a}+{b}="} for a in range(10, 14) for b in range(20, 25)]
    quantised = bool(changes.get("qlora"))
    arguments, peft_config = _arguments(output, changes)
    sampling = {"num_generations": 4, "max_completion_length": 6, "temperature": 1.0}
    return GRPOTrainer(
        model=load(model, quantised),
        reward_funcs=checksum,
        args=GRPOConfig(**{"max_steps": 4, **sampling, **arguments}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=peft_config,
        callbacks=list(callbacks),
    )


TRAINERS = {"sft": sft_trainer, "grpo": grpo_trainer}


def _arguments(output: Path, changes: dict[str, Any]) -> tuple[dict[str, Any], LoraConfig | None]:
    """Arguments that both trainers share; `lora` and `qlora` in the changes stand for a LoRA configuration."""
    qlora = changes.pop("qlora", False)
    lora = changes.pop("lora", False) or qlora
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    config = LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    return arguments | changes, config if lora else None


def trained_weights(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of every parameter by name, on the CPU."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logged(trainer: Trainer) -> list[dict[str, Any]]:
    """What the trainer logged, step by step, without what depends on the clock."""
    return [without_clock(row) for row in trainer.state.log_history]


def without_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not any(part in key for part in CLOCK)}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
