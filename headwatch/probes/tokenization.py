"""Tokenise a pair so that clean and corrupted token ids can be compared position by position.

The rules are numbered as in docs/reference/probes.md.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwatch.errors import UserError
from headwatch.probes.families import Candidate


@dataclass(frozen=True)
class AlignedPair:
    """A pair as token ids.

    Attributes:
        clean, corrupted: prompt and the shared start of both answers, of equal length.
        answer: the first token that differs, (clean, corrupted).
        texts: clean and corrupted as text.
    """

    clean: list[int]
    corrupted: list[int]
    answer: tuple[int, int]
    texts: tuple[str, str]


class MisalignedError(Exception):
    """This tokenizer cannot align this pair. ``reason`` is the message without the detail, for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


class PairTokenizer:
    """Aligns pairs with a Hugging Face tokenizer, or with a processor that contains one; it is not changed.

    Attributes:
        tokenizer: the tokenizer.
        name: see `tokenizer_name`.
        vocabulary: see `vocabulary_digest`.
        prefix: ids that the tokenizer adds before every text (a start token in Llama 3, none in Qwen2.5).
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise UserError(
                "probe pairs are made from text and need a tokenizer: pass one, or use ProbeSet.from_token_ids"
            )
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a multimodal processor
        self.name = tokenizer_name(self.tokenizer)
        self.vocabulary = vocabulary_digest(self.tokenizer)
        plain, special = self.encode("7"), self.encode("7", special=True)
        # An end token would come between prompt and answer, so only the prefix is kept.
        starts = [i for i in range(len(special)) if special[i : i + len(plain)] == plain]
        self.prefix = special[: starts[0]] if starts else []
        # SentencePiece adds a space before every text, so an answer alone never gives the ids that it has in place.
        self._answers_need_context = self.encode("{7")[-len(plain) :] != plain

    @property
    def pad_id(self) -> int:
        """The padding id: the tokenizer's pad token, else its end token, else 0."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((i for i in ids if i is not None), 0)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The token ids of a text; special: add the tokenizer's special tokens."""
        try:
            with _backend_settings_kept(self.tokenizer):
                return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except Exception as error:  # the tokenizers library raises bare Exceptions, e.g. for a missing unknown token
            raise UserError(f"tokenizer {self.name!r} cannot encode {shorten(text)!r}: {error}") from error

    def encode_prompt(self, text: str) -> list[int]:
        """The token ids of a prompt, with the tokenizer's prefix."""
        ids = self.encode(text)
        # A chat template may have written the start token already.
        return ids if self.prefix and ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def align(self, pair: Candidate) -> AlignedPair:
        """Tokenise a pair under rules 1 to 3.

        Raises:
            MisalignedError: the pair breaks a rule.
        """
        clean, clean_answer = self._join("clean", pair.clean, pair.clean_answer)
        corrupted, corrupted_answer = self._join("corrupted", pair.corrupted, pair.corrupted_answer)
        if clean == corrupted:
            raise MisalignedError("clean and corrupted prompt are the same")
        if len(clean) != len(corrupted):
            raise MisalignedError(
                "the prompts differ in token length", f"clean {len(clean)}, corrupted {len(corrupted)}"
            )
        if len(clean_answer) != len(corrupted_answer):
            lengths = f"clean {len(clean_answer)}, corrupted {len(corrupted_answer)}"
            raise MisalignedError("the answers differ in token length", lengths)
        if clean_answer == corrupted_answer:
            raise MisalignedError("clean and corrupted answer are the same")
        j = next(i for i, (y, z) in enumerate(zip(clean_answer, corrupted_answer, strict=True)) if y != z)
        shared = clean_answer[:j]
        shared_text = self.tokenizer.decode(shared, clean_up_tokenization_spaces=False) if shared else ""
        return AlignedPair(
            clean + shared,
            corrupted + shared,
            (clean_answer[j], corrupted_answer[j]),
            (pair.clean + shared_text, pair.corrupted + shared_text),
        )

    def _join(self, side: str, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Rule 1: the ids of prompt and answer tokenised separately, if the joined text gives the same ids."""
        prompt_ids, joined = self.encode_prompt(prompt), self.encode_prompt(prompt + answer)
        if not prompt_ids:
            raise MisalignedError(f"the {side} prompt has no tokens")
        unknown, unknown_text = self.tokenizer.unk_token_id, self.tokenizer.unk_token
        # Where the unknown token is also the end token (GPT-2), a text may contain it on purpose.
        if unknown is not None and unknown in joined[len(self.prefix) :] and unknown_text not in prompt + answer:
            raise MisalignedError("the tokenizer has no token for part of the text")
        in_place = joined[len(prompt_ids) :]
        answer_ids = in_place if self._answers_need_context else self.encode(answer)
        if prompt_ids + answer_ids != joined:
            raise MisalignedError("prompt and answer merge when they are tokenised together", f"answer {answer!r}")
        if not answer_ids:
            raise MisalignedError(f"the {side} answer has no tokens")
        return prompt_ids, answer_ids


def tokenizer_name(tokenizer: Any) -> str:
    """A display name: the model id, the folder's name of a local tokenizer, or the class of one made in code."""
    name = str(getattr(tokenizer, "name_or_path", "") or "")
    if not name:
        return type(tokenizer).__name__
    # A local path has no meaning on another machine.
    return Path(name).name if Path(name).is_absolute() or name.startswith(".") else name


def vocabulary_digest(tokenizer: Any) -> str:
    """First 16 hex digits of the SHA-256 of all (id, token): the same tokenizer has the same digest under any path."""
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{index}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def shorten(text: str, limit: int = 60) -> str:
    """The text on one line, truncated to the limit."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def most_common(reasons: Sequence[str]) -> str:
    """The most frequent reason, with its count."""
    reason = max(set(reasons), key=lambda r: (reasons.count(r), r))
    return f"{reason} ({reasons.count(reason)} of {len(reasons)})"


@contextmanager
def _backend_settings_kept(tokenizer: Any) -> Iterator[None]:
    """Restore the fast tokenizer's truncation and padding, which transformers switches off at every plain call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
