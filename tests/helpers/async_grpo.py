"""AsyncGRPOTrainer on a CPU: TRL's trainer, with stand-ins for what needs a GPU and a server.

The rollouts come from a list instead of a vLLM server, no weights are sent, and FlashAttention 3's varlen kernel, which
the trainer downloads, is replaced by the same sums in torch.
"""

import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer

PROMPTS = [(a, b) for a in range(10, 14) for b in range(20, 23)]


class Rollouts:
    """RolloutWorkerProtocol: groups of two completions with opposite advantages."""

    def __init__(self, tokenizer: Any, steps: int) -> None:
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        self._tokenizer, self._steps = tokenizer, steps

    def start(self) -> None:
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

        for group in range(self._steps * 8):
            a, b = PROMPTS[group % len(PROMPTS)]
            prompt = self._tokenizer(f"{a}+{b}=")["input_ids"]
            for advantage, answer in ((1.0, a + b), (-1.0, a + b + 1)):
                completion = self._tokenizer(str(answer))["input_ids"]
                mask = [0] * len(prompt) + [1] * len(completion)
                self.rollout_buffer.put(
                    RolloutSample(
                        prompt=[{"role": "user", "content": f"{a}+{b}="}],
                        completion=[{"role": "assistant", "content": str(answer)}],
                        input_ids=np.array([*prompt, *completion]),
                        completion_mask=np.array(mask),
                        old_log_probs=np.array(mask, dtype=np.float32) * -3.0,
                        advantage=advantage,
                        model_version=group // 8,
                        group_id=group,
                        metrics={"reward": advantage},
                    )
                )

    def stop(self) -> None:
        pass

    def update_model_version(self, model_version: int) -> None:
        pass

    def check_health(self, stale_after_s: float) -> None:
        raise AssertionError("no rollouts are left")


class NoTransfer:
    """WeightTransferProtocol that sends nothing."""

    def init_weight_transfer(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        for _ in iterator:
            pass

    def resume(self) -> None:
        pass

    def destroy(self) -> None:
        pass


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, *_: int, softmax_scale: float, **__: Any
) -> Tensor:
    """Causal attention of packed sequences, whose queries are the last tokens of their keys: [T, H, D]."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    parts = []
    for i in range(len(starts_q) - 1):
        own_q, keys = q[starts_q[i] : starts_q[i + 1]], slice(starts_k[i], starts_k[i + 1])
        scores = torch.einsum("qhd,khd->hqk", own_q, k[keys]) * softmax_scale
        rows, columns = scores.shape[1:]
        hidden = torch.ones(rows, columns, dtype=torch.bool).triu(columns - rows + 1)
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v[keys]))
    return torch.cat(parts)


def async_grpo(model: Path, output: Path, callbacks: list[Any], common: dict[str, Any]) -> Any:
    """The trainer; 3 steps in the arguments `common`."""
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, async_grpo_trainer, packing

    async_grpo_trainer.get_peak_flops_per_device = lambda *_: 1e12  # asks CUDA for the device's name
    packing._flash_attn = lambda: SimpleNamespace(flash_attn_varlen_func=varlen_attention)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return AsyncGRPOTrainer(
        model=str(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=AsyncGRPOConfig(**common, token_budget=0),
        train_dataset=Dataset.from_list([{"prompt": f"{a}+{b}="} for a, b in PROMPTS]),
        processing_class=tokenizer,
        callbacks=callbacks,
        rollout_worker=Rollouts(tokenizer, common["max_steps"]),
        weight_transfer=NoTransfer(),
    )
