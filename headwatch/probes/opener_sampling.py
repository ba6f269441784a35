"""Sampling of openers from a model, without changing the model or any random state.

It does not use model.generate, which keeps caches and reads settings that a trainer may have changed.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from headwatch.model.anatomy import Anatomy
from headwatch.model.drawing import draw_tokens, uniforms
from headwatch.model.forward import Call, callers_autocast
from headwatch.model.read_only import read_only_pass
from headwatch.probes.padding import pad_left

BATCH_SIZE = 16


def sample_continuations(
    model: nn.Module,
    prompts: Sequence[list[int]],
    seeds: Sequence[str],
    n_tokens: int,
    temperature: float = 0.6,
    top_p: float = 0.95,
    optimizer: object | None = None,
) -> list[list[int]]:
    """Sample a continuation of each prompt, the same for the same model, prompt and seed.

    Args:
        model: the trainer's model; unchanged afterwards, and so is every random state.
        prompts: token ids.
        seeds: one per prompt.
        n_tokens: length of every continuation; special tokens do not end it. So processes that share a sharded model
            run the same number of forward passes.
        temperature, top_p: of the draws, among the 1,024 most likely tokens.
        optimizer: the trainer's; needed under ZeRO-3 only.

    Returns:
        n_tokens token ids per prompt.
    """
    anatomy = Anatomy.of(model)
    # Prompts of similar length share a batch, which needs less padding.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    found: dict[int, list[int]] = {}
    with ExitStack() as stack:
        stack.enter_context(read_only_pass(model, optimizer))
        like = next(model.parameters())  # of sharded models gathered only now
        call = stack.enter_context(callers_autocast(anatomy.model, like.device))
        stack.enter_context(torch.no_grad())
        # In float64, eager attention gives NaN at padded positions (see attribution/batching.py).
        size = 1 if like.dtype == torch.float64 else BATCH_SIZE
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            numbers = torch.tensor([uniforms(seeds[i], n_tokens) for i in rows], dtype=torch.float64)
            drawn = _continue(call, [prompts[i] for i in rows], numbers, like.device, temperature, top_p)
            found |= dict(zip(rows, drawn.tolist(), strict=True))
    return [found[i] for i in range(len(prompts))]


def _continue(
    call: Call,
    prompts: Sequence[list[int]],
    uniforms: Tensor,
    device: torch.device,
    temperature: float,
    top_p: float,
) -> Tensor:
    """Sample n tokens after each of B prompts, [B, n]; uniforms: [B, n] in [0, 1), one per draw."""
    ids, mask = (torch.tensor(rows, device=device) for rows in pad_left(prompts))
    cache = DynamicCache()
    drawn: list[Tensor] = []
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for step in range(uniforms.shape[1]):
        logits = call(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        drawn.append(draw_tokens(logits, uniforms[:, step], temperature, top_p))
        ids = drawn[-1][:, None].to(device)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return torch.stack(drawn, 1)
