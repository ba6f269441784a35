"""Texts whose attention is measured in place of the probes' prompts: completions, such as those `evaluate` samples.

Attention between sentences: P_st is the mean attention of the tokens of sentence s to those of an earlier sentence t. A
receiver head (Bogdan et al. 2025) gives most of it to a few sentences.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwatch.errors import UserError

MAX_TOKENS = 512  # of a text: patterns grow with its square
MIN_SENTENCES = 5  # fewer received means have no useful kurtosis
_END = re.compile(r"[.?!]['\")\]}]*\s+|\s*\n\s*")  # of a sentence, with the white space after it


@dataclass(frozen=True)
class Text:
    """One text.

    Attributes:
        ids: its tokens, [T].
        sentences: number of the sentence of each token, [T], from 0; all 0 where the tokenizer gives no places.
    """

    ids: Tensor
    sentences: Tensor


def read_texts(path: Path, tokenizer: Any, n: int, max_tokens: int = MAX_TOKENS) -> list[Text]:
    """The first n texts of a .jsonl file with a "text" per line, and optionally a "prompt" before it.

    Args:
        path: the file; the samples.jsonl of `headwatch evaluate` is one.
        tokenizer: of the model.
        n: number of texts.
        max_tokens: the rest of a longer text is left out.

    Raises:
        UserError: the file cannot be read, or has no text of two tokens.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts {path} cannot be read ({error}): give a .jsonl file") from error
    found: list[Text] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or len(found) == n:
            continue
        try:
            row = json.loads(line)
            text = str(row.get("prompt") or "") + row["text"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'--texts {path}, line {number}: no JSON object with a "text"') from error
        encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast)
        ids = encoded["input_ids"][:max_tokens]
        if len(ids) > 1:
            places = encoded["offset_mapping"][: len(ids)] if tokenizer.is_fast else [(0, 0)] * len(ids)
            found.append(Text(torch.tensor(ids), torch.tensor(sentences_of(text, places))))
    if not found:
        raise UserError(f"--texts {path}: no text of two tokens or more in it")
    return found


def sentences_of(text: str, places: Sequence[tuple[int, int]]) -> list[int]:
    """Number of the sentence of each token, from 0.

    A sentence ends with . ? or ! before white space, and at the end of a line.

    Args:
        text: the text.
        places: first character of each token, and the one after its last; (0, 0) for a token without a place.

    >>> sentences_of("It is 3.5. So?", [(0, 2), (2, 5), (5, 9), (9, 10), (10, 13), (13, 14)])
    [0, 0, 0, 0, 1, 1]
    """
    starts = [match.end() for match in _END.finditer(text.rstrip())]
    return [bisect_right(starts, max(0, stop - 1)) for _, stop in places]


def received_by_sentence(pattern: Tensor, sentences: Tensor) -> Tensor:
    """Mean attention that later sentences pay to each sentence but the last, [L, H, S - 1]; every token counts alike.

    The first token is left out as a receiver: many heads rest on it, whatever the text says.

    Args:
        pattern: [L, H, T, T].
        sentences: [T].
    """
    count = int(sentences.max()) + 1
    inside = torch.nn.functional.one_hot(sentences.to(pattern.device), count).to(pattern.dtype)  # [T, S]
    receivers = inside.clone()
    receivers[0] = 0.0
    summed = inside.T @ pattern @ receivers  # [L, H, S, S]
    later = torch.ones(count, count, device=pattern.device, dtype=pattern.dtype).tril(-1)
    weights = later * inside.sum(0)[:, None] * receivers.sum(0)
    return ((summed * later).sum(-2) / weights.sum(0).clamp(min=1.0))[..., :-1]
