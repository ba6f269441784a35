"""A run on real weights: SFT on GSM8K, or GRPO on small sums, with the callback (docs/first-light.md).

    python benchmarks/first_light.py sft  --model FOLDER [--gguf-file FILE] --data gsm8k_train.jsonl --out runs/sft
    python benchmarks/first_light.py grpo --model FOLDER [--gguf-file FILE] --out runs/grpo

Written for SmolLM2-135M-Instruct (Q4_1) on a CPU, for as many steps as that allows. Probed are sums up to 20
behind four solved ones, and table recall, which that model does in part; the bare addition family it does not (its
metric gap is nearly zero). No prompt
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

SOLVED = "3+5=8\n12+7=19\n9+4=13\n16+2=18\n"


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


def prompt(a: int, b: int) -> str:
    """A sum behind four solved ones: without them the model hardly adds at all."""
    return SOLVED + f"{a}+{b}="


def sum_pairs(path: Path, n: int, seed: int, tokenizer: Any) -> ProbeSet:
    """Probe pairs of the task itself, by way of a file of one's own: another second number, a sum as long."""
    draw = random.Random(seed)
    lines: dict[str, dict[str, str]] = {}
    while len(lines) < n:
        a, b, other = (draw.randint(1, 20) for _ in range(3))
        if b != other and len(str(b)) == len(str(other)) and len(str(a + b)) == len(str(a + other)):
            line = {"clean": prompt(a, b), "corrupted": prompt(a, other), "family": "sums"}
            lines[prompt(a, b)] = {**line, "clean_answer": str(a + b), "corrupted_answer": str(a + other)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    return ProbeSet.load(path, tokenizer)


def sums(n: int, seed: int, held_out: set[str]) -> list[dict[str, str]]:
    """Sums of two numbers up to 20; prompts that a probe uses are left out."""
    draw = random.Random(seed + 1)
    rows = []
    while len(rows) < n:
        a, b = draw.randint(1, 20), draw.randint(1, 20)
        if prompt(a, b) not in held_out:
            rows.append({"prompt": prompt(a, b), "answer": str(a + b)})
    return rows


def exact_answer(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """1 for the number itself on the first line, else 0."""
    return [float(text.split("\n")[0].strip() == right) for text, right in zip(completions, answer, strict=True)]


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
    asked = sum_pairs(Path(options.out) / "sums.jsonl", options.n_pairs, options.seed, tokenizer)
    probes = ProbeSet.concat(
        [asked, ProbeSet.generate("recall", tokenizer, n_pairs=options.n_pairs, seed=options.seed)]
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
        probed = {json.loads(line)["clean"] for line in (Path(options.out) / "sums.jsonl").read_text().splitlines()}
        rows = sums(4 * options.steps, options.seed, probed)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[exact_answer],
            args=GRPOConfig(
                learning_rate=options.learning_rate or 1e-5,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=4,
                temperature=0.7,
                **common,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
        )
    trainer.train()


if __name__ == "__main__":
    main()
