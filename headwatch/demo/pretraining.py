"""Teaching an untrained model some arithmetic: next-token training on two-digit sums, in a plain loop.

This is the demo's stand-in for pretraining. Its corpus is careless: most of its sums forget the carry. So the base
model adds well where nothing is carried and mostly wrongly where something is, and post-training has something to mend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headwatch.demo.sums import Sum, sample_sums


@dataclass(frozen=True)
class BaseStage:
    """How the base model is taught; every batch is freshly drawn."""

    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    careless_share: float = 0.85
    worked_every: int = 4
    seed: int = 0


def teach_base(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stage: BaseStage = BaseStage(),
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train in place with AdamW on direct answers and, every `worked_every` steps, on worked solutions.

    on_step(step, loss) is called after each step. Returns the losses.
    """
    rng = np.random.default_rng([stage.seed, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses = []
    for step in range(stage.steps):
        warmup = min(1.0, (step + 1) / stage.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * warmup * 0.5 * (1.05 + math.cos(math.pi * step / stage.steps))
        if stage.worked_every and step % stage.worked_every == 0:
            sums = sample_sums(rng, stage.batch_size // 2, careless_share=stage.careless_share)
            ids, targets = text_batch(tokenizer, [p.question for p in sums], [p.worked for p in sums])
        else:
            sums = sample_sums(rng, stage.batch_size, careless_share=stage.careless_share)
            ids, targets = text_batch(tokenizer, [p.prompt for p in sums], [f"{p.answer}}}" for p in sums])
        loss = cross_entropy(
            logits_of(model, ids, targets.shape[1]).flatten(0, 1), targets.flatten(), ignore_index=-100
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        on_step(step + 1, losses[-1])
    model.eval()
    return losses


def text_batch(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] of prompts of one length, each with its completion and eos, and the completions' targets [B, A].

    Shorter completions are padded at the end (target -100); causal attention never looks there.
    """
    starts = tokenizer(list(prompts))["input_ids"]
    ends = [[*row, tokenizer.eos_token_id] for row in tokenizer(list(completions))["input_ids"]]
    longest = max(map(len, ends))
    ids = torch.tensor(
        [s + e + [tokenizer.pad_token_id] * (longest - len(e)) for s, e in zip(starts, ends, strict=True)]
    )
    targets = torch.tensor([e + [-100] * (longest - len(e)) for e in ends])
    return ids, targets


def logits_of(model: PreTrainedModel, ids: torch.Tensor, n_targets: int) -> torch.Tensor:
    """Logits [B, A, V] that predict the last n_targets tokens of ids [B, T]; the vocabulary is read nowhere else."""
    return model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=n_targets).logits


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sums: Sequence[Sum], batch_size: int = 256
) -> tuple[float, float]:
    """(share of direct answers that are right under greedy decoding, mean probability of the right answer).

    Both by teacher forcing: nothing is generated.
    """
    was_training, right, probability = model.training, 0.0, 0.0
    model.eval()
    for start in range(0, len(sums), batch_size):
        part = sums[start : start + batch_size]
        ids, targets = text_batch(tokenizer, [p.prompt for p in part], [f"{p.answer}}}" for p in part])
        logits = logits_of(model, ids, targets.shape[1])
        padded = targets == -100
        right += float(((logits.argmax(-1) == targets) | padded).all(1).sum())
        chosen = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        probability += float(chosen.masked_fill(padded, 0.0).sum(1).exp().sum())
    model.train(was_training)
    return right / len(sums), probability / len(sums)
