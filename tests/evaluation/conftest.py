"""A small model that has memorised the answers to a few problems, and the file of these problems."""

import json
from pathlib import Path

import pytest
import torch

from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save

SOLVED, UNSOLVED = 6, 2


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    rows = [{"problem": f"{a}+{2 * a}=", "answer": f"{3 * a}.0"} for a in range(11, 11 + SOLVED + UNSOLVED)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def solver(problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right on the first SOLVED problems; it has learned wrong answers to the others."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, ModelSize(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_mlp=48))
    texts = []
    for index, line in enumerate(problems.read_text().splitlines()):
        row = json.loads(line)
        messages = [{"role": "user", "content": row["problem"]}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        answer = int(float(row["answer"])) + (index >= SOLVED)
        texts.append(f"{prompt}\\boxed{{{answer}}}<|im_end|>")
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with torch.random.fork_rng():
        for _ in range(150):
            loss = model(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return save(model.eval(), tokenizer, tmp_path_factory.mktemp("solver"))
