"""A tokenizer and a Qwen2 model small enough to train from scratch on two cores.

Each digit is one token, so that the pairs of the probe families align. The words of their templates are one token each;
other text falls back to bytes, so every text round-trips. Nothing is downloaded: the vocabulary is a fixed list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Words of the arithmetic and recall templates. Any other word takes one token per byte.
WORDS = (
    *("Compute", " Answer", " \\", "boxed", "Table", " The", " value", " of", " is", "Solve", " for"),
    *(" has", " have", " gets", " gives", " more", " away", " How", " many", " does", " now", " then", " and"),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's tokenizer (single digits, byte fallback) with a vocabulary of 256 bytes and WORDS.

    Completions end with `<|im_end|>` (eos). Padding is `<|endoftext|>`, another token, so that eos is not masked.
    """
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[Any] = []  # pairs (left, right); transformers annotates them as strings
    for word in WORDS:
        letters = word.lstrip(" ")
        spelled = [(letters[:end], letters[end]) for end in range(1, len(letters))]
        # The space merges last, so that a single letter after a space (a key of the recall family) is its own token.
        for merge in [*spelled, *[("Ġ", letters)] * word.startswith(" ")]:
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault("".join(merge), len(vocabulary))
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class ModelSize:
    """Number of layers and heads, model and MLP width; the head width is d_model / n_heads, as in Qwen2."""

    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 2
    d_model: int = 128
    d_mlp: int = 256


def build_model(tokenizer: Qwen2Tokenizer, size: ModelSize = ModelSize(), *, seed: int = 0) -> Qwen2ForCausalLM:
    """An untrained Qwen2 model in float32 whose weights depend on `seed` alone.

    The architecture is Qwen2.5's (grouped-query attention, q/k/v biases, tied embeddings). With the default size of
    about 0.6 million parameters, two cores train it in a minute.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        num_key_value_heads=size.n_kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.float()


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: str | Path) -> Path:
    """Save model and tokenizer for `from_pretrained(folder)`; return the folder."""
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
