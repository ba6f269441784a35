"""A base that has learned half of a task, and a model trained further from it, with their tokenizer."""

from pathlib import Path

import pytest
import torch

from headwatch import ProbeSet
from headwatch.demo.tiny_model import CHAT_TEMPLATE, ModelSize, build_model, build_tokenizer, save

THINK = (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)  # as in Qwen3's template


@pytest.fixture(scope="session")
def base_and_post(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Saved after 40 and after 120 steps on the texts of the pairs themselves, so that both have signal on them."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, ModelSize(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_mlp=48))
    probes = ProbeSet.generate("addition", tokenizer, n_pairs=16)
    ids = torch.cat([probes.clean, probes.corrupted])
    ids = torch.cat([ids, probes.answers.T.reshape(-1, 1)], 1)
    mask = torch.cat([probes.attention_mask.repeat(2, 1), torch.ones(len(ids), 1, dtype=torch.long)], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    folder = tmp_path_factory.mktemp("models")
    tokenizer.chat_template = CHAT_TEMPLATE + THINK
    with torch.random.fork_rng():
        for step in range(1, 121):
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 40:
                base = save(model, tokenizer, folder / "base")
    return base, save(model, tokenizer, folder / "post")
