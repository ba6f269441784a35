"""--smoke, and machines without a GPU: which options are replaced, by what and why. Every replacement is printed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save
from headwatch.demo.toy_rows import write_questions, write_rows
from headwatch.training.options import PREFIX, Options

SIZE = ModelSize(n_layers=2, n_heads=4, d_model=32, d_mlp=64)
BYTES_A_TOKEN = 8  # the stand-in's tokenizer falls back to bytes: its texts are up to this many times as long


@dataclass(frozen=True)
class Substitution:
    """One option that differs from the recipe."""

    name: str
    recipe: Any
    here: Any
    why: str

    def __str__(self) -> str:
        recipe = int(self.recipe) if isinstance(self.recipe, float) and self.recipe.is_integer() else self.recipe
        return f"{self.name}: {recipe} -> {self.here} ({self.why})"


def without_gpu(options: Options) -> list[Substitution]:
    """Replace the options that need a GPU. Returns the replacements."""
    values = options.values
    replacements: list[tuple[str, Any, Callable[[Any], bool], str]] = [
        # An environment that names accelerate's device has made its own choice.
        ("use_cpu", True, lambda v: not v and "ACCELERATE_TORCH_DEVICE" not in os.environ, "no GPU is used"),
        ("bf16", False, lambda v: v is not False, "bf16 kernels need a GPU"),
        ("bf16_full_eval", False, bool, "bf16 kernels need a GPU"),
        ("fp16", False, bool, "fp16 kernels need a GPU"),
        ("tf32", None, bool, "TF32 needs a GPU"),
        ("optim", "adamw_torch", lambda v: "fused" in str(v) or "bit" in str(v), "fused optimizers need a GPU"),
        ("use_vllm", False, bool, "vLLM needs a GPU"),
        ("dtype", "float32", lambda v: v not in (None, "float32"), "16-bit weights are slow without a GPU"),
        ("attn_implementation", "sdpa", lambda v: "flash" in str(v), "flash attention needs a GPU"),
        ("use_liger_kernel", False, bool, "Triton kernels need a GPU"),
        ("torch_compile", False, bool, "compiling is for GPUs"),
        ("load_in_4bit", False, bool, "quantised weights are for GPUs"),
        ("load_in_8bit", False, bool, "quantised weights are for GPUs"),
        ("dataloader_pin_memory", False, bool, "pinned memory is for copies to a GPU"),
    ]
    done = []
    for name, here, applies, why in replacements:
        if name in values and applies(values[name]):
            before = "true (TRL's default)" if name == "bf16" and values[name] is None else values[name]
            done.append(Substitution(name, before, here, why))
            values[name] = here
    if values.get("ddp_backend") is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        done.append(Substitution("ddp_backend", "nccl", "gloo", "NCCL needs a GPU"))
        values["ddp_backend"] = "gloo"
    return done


def make_small(options: Options, folder: Path) -> list[Substitution]:
    """Replace the model, the Hub's rows and every size, so that the recipe runs in seconds. Returns the replacements.

    Options of the command line stay. The model and rows are written into `folder` by the first rank; the others wait.
    """
    values, grpo = options.values, options.method == "grpo"
    done: list[Substitution] = []

    def use(name: str, here: Any, why: str) -> None:
        if name in values and name not in options.typed and values[name] != here:
            done.append(Substitution(name, values[name], here, why))
            values[name] = here

    use(
        "model_name_or_path", str(folder / "model"), f"an untrained Qwen2 model, {SIZE.n_layers} x {SIZE.n_heads} heads"
    )
    if not Path(str(values["dataset_name"])).exists():
        like = str(values["dataset_name"])
        use("dataset_name", str(folder / f"{'gsm8k' if 'gsm8k' in like.lower() else 'openr1'}.jsonl"), "few rows")
        use("dataset_config", None, "of the Hub's data set")
        use("dataset_split", "train", "of the Hub's data set")
        use("dataset_revision", None, "of the Hub's data set")
    use("model_revision", "main", "of the Hub's model")
    use("stop_tokens", ["<|im_end|>", "<|endoftext|>"], "the stand-in's own") if values["stop_tokens"] else None
    use("max_steps", 4, "few steps")
    use("n_problems", 16, "few rows")
    if values["max_prompt_tokens"]:
        use("max_prompt_tokens", BYTES_A_TOKEN * values["max_prompt_tokens"], "the stand-in reads bytes")
    if values.get("max_length"):
        use("max_length", min(2048, BYTES_A_TOKEN * values["max_length"]), "the stand-in's context")
    use("per_device_train_batch_size", 4 if grpo else 1, "small")
    use("gradient_accumulation_steps", 2, "small")
    if grpo:
        use("num_generations", 4, "small")
        use("max_completion_length", 12, "small")
        use("generation_batch_size", None, "follows from the others")
        use("steps_per_generation", None, "follows from the others")
    if values["use_peft"]:
        use("lora_r", min(4, values["lora_r"]), "small")
    watch, now = options.watch, options.settings()

    def use_watched(name: str, here: Any, why: str) -> None:
        group, _, leaf = name.rpartition(".")
        block: Any = now if not group else getattr(now, group)
        if f"{PREFIX}.{name}" in options.typed or getattr(block, leaf) == here:
            return
        done.append(Substitution(f"{PREFIX}.{name}", getattr(block, leaf), here, why))
        (watch.setdefault(group, {}) if group else watch)[leaf] = here

    use_watched("every", 2, "few steps")
    use_watched("n_pairs", min(8, now.n_pairs), "few pairs")
    if "openers" in now.families and not all(Path(name).exists() for name in now.openers.sources):
        use_watched("openers.questions", [str(folder / "questions.jsonl")], "few questions")
    use_watched("scoring.steps", min(2, now.scoring.steps), "few points")
    if str(values["save_strategy"]) in ("steps", "SaveStrategy.STEPS", "best"):
        use("save_steps", 2, "few steps")
    if "output_dir" not in options.typed:
        use("output_dir", str(folder / "output"), "a smoke run is no run")
    return done


def write_stand_ins(folder: Path) -> None:
    """The stand-in model with its tokenizer, and rows in both shapes."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 10**6
    model = build_model(tokenizer, SIZE)
    model.config.max_position_embeddings = 8192  # no weights depend on it
    model.generation_config.max_length = None
    save(model, tokenizer, folder / "model")
    write_rows(folder / "gsm8k.jsonl", "gsm8k")
    write_rows(folder / "openr1.jsonl", "openr1")
    write_questions(folder / "questions.jsonl")
