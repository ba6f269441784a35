"""A run on real weights: SFT on GSM8K, or GRPO on small sums, with the callback (docs/first-light.md).

    python benchmarks/first_light.py sft  --model FOLDER [--gguf-file FILE] --data gsm8k_train.jsonl --out runs/sft
    python benchmarks/first_light.py grpo --model FOLDER [--gguf-file FILE] --out runs/grpo

Written for SmolLM2-135M-Instruct (Q4_1) on a CPU, for as many steps as that allows. Probed are one-digit addition and
table recall, which that model does in part; two-digit addition it does not (its metric gap is nearly zero). No prompt
of the probe set is trained on.
"""

import argparse
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from headwatch import HeadWatchCallback, ProbeSet


def gsm8k_rows(path: Path, n: int, seed: int) -> list[dict[str, Any]]:
    r"""Question and worked solution as a conversation; the answer in \boxed{}, calculator marks taken out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    random.Random(seed).shuffle(rows)
    out = []
    for row in rows[:n]:
        solution, answer = row["answer"].split("####")
        solution = re.sub(r"<<.*?>>", "", solution).strip()
        out.append(
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": f"{solution}\nAnswer: \\boxed{{{answer.strip()}}}"}],
            }
        )
    return out


def sums(n: int, seed: int, held_out: set[str]) -> list[dict[str, str]]:
    """Sums of two numbers up to 20, in the words of the probes; prompts that a probe uses are left out."""
    draw = random.Random(seed)
    rows = []
    while len(rows) < n:
        a, b = draw.randint(1, 20), draw.randint(1, 20)
        prompt = f"Compute {a}+{b}. Answer: \\boxed{{"
        if prompt not in held_out:
            rows.append({"prompt": prompt, "answer": str(a + b)})
    return rows


def exact_answer(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """1 for the number itself before the closing brace, else 0."""
    return [float(text.split("}")[0].strip() == right) for text, right in zip(completions, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["sft", "grpo"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf-file")
    parser.add_argument("--data", type=Path, help="gsm8k_train.jsonl (sft)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--n-pairs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")

    where = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    tokenizer = AutoTokenizer.from_pretrained(options.model, **where)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **where)
    pairs: dict[str, Any] = {"n_pairs": options.n_pairs, "seed": options.seed}
    probes = ProbeSet.concat(
        [
            ProbeSet.generate("addition", tokenizer, digits=1, **pairs),
            ProbeSet.generate("recall", tokenizer, **pairs),
        ]
    )
    callback = HeadWatchCallback(probes, every=options.every, strict=True)
    common: dict[str, Any] = {
        "output_dir": options.out,
        "max_steps": options.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": ["wandb"],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": options.seed,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
    }
    if options.kind == "sft":
        rows = gsm8k_rows(options.data, 4 * options.steps, options.seed)
        trainer: Any = SFTTrainer(
            model=model,
            args=SFTConfig(
                learning_rate=options.learning_rate or 4e-5, per_device_train_batch_size=4, max_length=384, **common
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
        )
    else:
        probed = {text[: text.index("{") + 1] for pair in probes.texts for text in pair}
        rows = sums(4 * options.steps, options.seed, probed)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[exact_answer],
            args=GRPOConfig(
                learning_rate=options.learning_rate or 1e-5,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=4,
                temperature=1.0,
                **common,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
        )
    trainer.train()


if __name__ == "__main__":
    main()
