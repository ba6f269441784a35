"""How a model goes on from a prompt: the openers that a probe set is made of, sampled without leaving a trace.

Not by model.generate, which keeps caches and reads settings that a trainer may have changed for its own sampling.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from headwatch.model.anatomy import Anatomy
from headwatch.model.forward import Call, callers_autocast
from headwatch.model.read_only import read_only_pass

AT_ONCE = 16  # prompts a batch
MOST_LIKELY = 1024  # tokens that are drawn from


def sample_continuations(
    model: nn.Module,
    prompts: Sequence[list[int]],
    seeds: Sequence[str],
    n_tokens: int,
    temperature: float = 0.6,
    top_p: float = 0.95,
    optimizer: object | None = None,
) -> list[list[int]]:
    """``n_tokens`` tokens behind each prompt, the same for the same model, prompt and seed.

    Args:
        model: as the trainer holds it; it comes out exactly as it went in, and so does every random state.
        prompts: token ids.
        seeds: one a prompt.
        n_tokens: always as many, whatever they are: where to stop is for the caller to see. So processes that share a
            sharded model run the same number of forward passes.
        temperature, top_p: of the draws, among the 1,024 most likely tokens.
        optimizer: the trainer's; needed under ZeRO-3 only.
    """
    anatomy = Anatomy.of(model)
    like = next(model.parameters())
    # Eager attention makes NaN of padding in float64 (see attribution/batches.py).
    size = 1 if like.dtype == torch.float64 else AT_ONCE
    # Like lengths together, so that little is padding.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    found: dict[int, list[int]] = {}
    with read_only_pass(model, optimizer), callers_autocast(anatomy.model, like.device) as call, torch.no_grad():
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            uniforms = torch.tensor([_uniforms(seeds[i], n_tokens) for i in rows], dtype=torch.float64)
            drawn = _continue(call, [prompts[i] for i in rows], uniforms, like.device, temperature, top_p)
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
    """The tokens [B, n] that follow B prompts; uniforms: [B, n] in [0, 1), which decide each draw."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
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
        drawn.append(_draw(logits, uniforms[:, step], temperature, top_p))
        ids = drawn[-1][:, None].to(device)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return torch.stack(drawn, 1)


def _draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token a row [B], out of the smallest set of likeliest tokens that holds top_p; logits [B, V], uniforms [B].

    On the CPU in float64, so that the draw itself is the same on every machine.
    """
    values, tokens = logits.float().topk(min(MOST_LIKELY, logits.shape[-1]), -1)
    weights = (values.cpu().double() / temperature).softmax(-1)
    before = weights.cumsum(-1) - weights
    reach = (weights * (before < top_p)).cumsum(-1)
    place = (reach <= uniforms[:, None] * reach[:, -1:]).sum(-1).clamp(max=weights.shape[1] - 1)
    return tokens.cpu().gather(1, place[:, None])[:, 0]


def _uniforms(seed: str, n: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.random() for _ in range(n)]
