"""Small real tokenizers, one for each way of tokenising numbers that the families must support."""

import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from headwatch.probes.families import FAMILIES

START = "<start>"


def family_texts(n: int = 60) -> list[str]:
    rng = random.Random(0)
    candidates = [f.draw(rng, **f.settings({})) for f in FAMILIES.values() for _ in range(n)]
    return [c.clean + c.clean_answer for c in candidates] + [str(i) for i in range(1000) for _ in range(3)]


def characters(**special: str) -> PreTrainedTokenizerFast:
    """One token per character: WordLevel over single characters."""
    alphabet = sorted({char for text in family_texts() for char in text})
    vocabulary = {token: i for i, token in enumerate([*special.values(), *alphabet])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special.get("unk_token", "?")))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_pairs(digits: str, vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """A BPE trained on the families' texts; ``digits`` is the pattern at which the text is split."""
    backend = Tokenizer(models.BPE())
    splits = pre_tokenizers.Split(Regex(digits), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([splits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(family_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def uneven_numbers() -> PreTrainedTokenizerFast:
    """Some numbers are one token, others several: a small vocabulary, and digits are not split (as in GPT-2)."""
    return byte_pairs("[{}]", vocab_size=400)


def brace_and_digit() -> PreTrainedTokenizerFast:
    """Characters, but a brace and a digit after it are one token, so that prompt and answer always merge."""
    alphabet = sorted({char for text in family_texts() for char in text})
    merges = [("{", digit) for digit in "0123456789"]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("{" + digit for _, digit in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def with_start_token() -> PreTrainedTokenizerFast:
    """Three digits per token and a start token before every text, as in Llama 3."""
    tokenizer = byte_pairs(r"\d{1,3}")
    tokenizer.add_special_tokens({"bos_token": START})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, tokenizer.bos_token_id)]
    )
    return tokenizer


def with_space_in_front() -> PreTrainedTokenizerFast:
    """A space before every text and one digit per token, as in SentencePiece models (Llama 2, Mistral)."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "</s>"], show_progress=False)
    backend.train_from_iterator(family_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


MAKERS = {
    "characters": lambda: characters(pad_token="<pad>", eos_token="<end>"),
    "digit BPE": lambda: byte_pairs(r"\d"),
    "3-digit BPE": with_start_token,
    "space in front": with_space_in_front,
}
