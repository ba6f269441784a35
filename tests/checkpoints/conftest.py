"""Two models that differ in what each head does, with a tokenizer that can switch thinking."""

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
    """A model that solves the pairs, and the same model with its heads in reverse order.

    So both compute the same, and head h of the second does what head 3 - h does in the first.
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, ModelSize(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_mlp=48))
    probes = ProbeSet.generate("addition", tokenizer, n_pairs=16)
    ids = torch.cat([probes.clean, probes.corrupted])
    ids = torch.cat([ids, probes.answers.T.reshape(-1, 1)], 1)
    mask = torch.cat([probes.attention_mask.repeat(2, 1), torch.ones(len(ids), 1, dtype=torch.long)], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    # One head of each layer begins stronger, so that heads differ for certain: events of both kinds were found from
    # three seeds, with and without vector instructions.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, :8] *= 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    folder = tmp_path_factory.mktemp("models")
    tokenizer.chat_template = CHAT_TEMPLATE + THINK
    with torch.random.fork_rng():
        for _ in range(200):
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    base = save(model.eval(), tokenizer, folder / "base")
    queries, keys = torch.arange(32).view(4, 8).flip(0).flatten(), torch.arange(16).view(2, 8).flip(0).flatten()
    with torch.no_grad():
        for attention in (layer.self_attn for layer in model.model.layers):
            for module, order in ((attention.q_proj, queries), (attention.k_proj, keys), (attention.v_proj, keys)):
                module.weight.copy_(module.weight[order].clone())
                module.bias.copy_(module.bias[order].clone())
            attention.o_proj.weight.copy_(attention.o_proj.weight[:, queries].clone())
    return base, save(model, tokenizer, folder / "post")
