"""The demo's pretraining: next-token training on two-digit sums, in a plain loop.

Most sums of the corpus omit the carry. The base model therefore adds correctly without a carry and mostly wrongly with
one, which leaves something for post-training to improve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headwatch.demo.sums import Sum, sample_sums


@dataclass(frozen=True)
class BaseStage:
    """Hyperparameters of pretraining; every batch is drawn anew."""

    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    careless_share: float = 0.85
    worked_every: int = 4
    seed: int = 0


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stage: BaseStage = BaseStage(),
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train `model` in place with AdamW, on direct answers and, every `worked_every` steps, on worked solutions.

    Args:
        model: an untrained model.
        tokenizer: its tokenizer.
        stage: hyperparameters.
        on_step: called as on_step(step, loss) after each step.

    Returns:
        The loss of each step.
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
    """Tokenise prompts of equal length with their completions, each followed by eos.

    Returns:
        Token ids [B, T] and the completions' targets [B, A]. Shorter completions are padded on the right (target -100).
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
    """Logits [B, A, V] that predict the last `n_targets` tokens of ids [B, T]; no other logits are computed."""
    return model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=n_targets).logits


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sums: Sequence[Sum], batch_size: int = 256
) -> tuple[float, float]:
    """Accuracy of direct answers, computed by teacher forcing.

    Returns:
        The share of answers that greedy decoding gets right, and the mean probability of the right answer.
    """
    right, probability = _answers(model, tokenizer, sums, batch_size)
    return float(right.mean()), float(probability.mean())


def right_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sums: Sequence[Sum], batch_size: int = 256
) -> NDArray[np.bool_]:
    """Which direct answers greedy decoding gets right, computed by teacher forcing, [number of sums]."""
    return _answers(model, tokenizer, sums, batch_size)[0]


@torch.no_grad()
def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sums: Sequence[Sum], batch_size: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each answer is right, and its probability."""
    was_training = model.training
    rights, probabilities = [], []
    model.eval()
    for start in range(0, len(sums), batch_size):
        part = sums[start : start + batch_size]
        ids, targets = text_batch(tokenizer, [p.prompt for p in part], [f"{p.answer}}}" for p in part])
        logits = logits_of(model, ids, targets.shape[1])
        padded = targets == -100
        rights.append(((logits.argmax(-1) == targets) | padded).all(1).numpy())
        chosen = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        probabilities.append(chosen.masked_fill(padded, 0.0).sum(1).exp().double().numpy())
    model.train(was_training)
    return np.concatenate(rights), np.concatenate(probabilities)
