"""Answers by transformers' generate, with draws that depend on the seed of each answer alone."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from headwatch.analysis.interventions import scaled_heads
from headwatch.evaluation.sampling import Completion, Request, SamplingSettings
from headwatch.model.drawing import draw_tokens
from headwatch.model.head_names import Head
from headwatch.probes.padding import pad_left


class _Drawing(LogitsProcessor):
    """Draws the next token of every row and leaves it as the only choice of a greedy search."""

    def __init__(self, seeds: Sequence[str], settings: SamplingSettings) -> None:
        self._random = [random.Random(seed) for seed in seeds]
        self._settings = settings

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores [B, V] with one finite entry per row."""
        numbers = torch.tensor([one.random() for one in self._random], dtype=torch.float64)
        settings = self._settings
        tokens = draw_tokens(scores, numbers, settings.temperature, settings.top_p, settings.top_k)
        chosen = torch.full_like(scores, float("-inf"))
        return chosen.scatter_(1, tokens[:, None].to(scores.device), 0.0)


class HfEngine:
    """Samples batches of answers from a model that is loaded.

    Args:
        model: a causal language model, plain or wrapped by PEFT.
        tokenizer: its tokenizer.
        settings: of the sampling.
        heads: {head: factor}, scaled by hooks while answers are sampled.
    """

    name = "transformers"

    def __init__(
        self, model: Any, tokenizer: Any, settings: SamplingSettings, heads: Mapping[Head, float] | None = None
    ) -> None:
        self._whole = model
        self._heads = dict(heads or {})
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters stay active
        self._tokenizer = tokenizer
        self._settings = settings
        self._ends = end_tokens(self._model, tokenizer)
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._context = context or 2**31

    def sample(self, requests: Sequence[Request]) -> list[Completion]:
        """One answer per request; the same batch gives the same answers."""
        pad = self._ends[0] if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id
        device = self._model.device
        ids, mask = (torch.tensor(rows, device=device) for rows in pad_left([list(r.ids) for r in requests], pad))
        longest = max(1, min(self._settings.max_tokens, self._context - ids.shape[1]))
        config = GenerationConfig(
            max_new_tokens=longest, do_sample=False, eos_token_id=self._ends, pad_token_id=pad, use_cache=True
        )
        drawing = _Drawing([request.seed for request in requests], self._settings)
        with torch.no_grad(), _only(self._model, config), scaled_heads(self._whole, self._heads):
            out: Tensor = self._model.generate(
                input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([drawing])
            )
        return [self._completion(row) for row in out[:, ids.shape[1] :].tolist()]

    def _completion(self, row: list[int]) -> Completion:
        end = next((i for i, token in enumerate(row) if token in self._ends), None)
        ids = row if end is None else row[:end]
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(str(text), len(ids), end is not None)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: those of the model's generation settings and the tokenizer's."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [found] if isinstance(found, int) else list(found or [])
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    for turn_end in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>"):  # chat templates whose end is not the eos token
        if turn_end in tokenizer.get_vocab():
            ids.append(tokenizer.convert_tokens_to_ids(turn_end))
    return list(dict.fromkeys(ids)) or [0]


@contextmanager
def _only(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Generate with this configuration alone: a checkpoint's own (a repetition penalty, top-k) would be merged in."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before
