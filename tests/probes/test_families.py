"""Properties of the families: every text is parsed, and its answer computed again."""

import os
import re
import subprocess
import sys

import pytest
import torch
from helpers.tiny_tokenizers import brace_and_digit, characters, uneven_numbers
from tokenizers import models

from headwatch.errors import UserError
from headwatch.probes import FAMILIES, ProbeSet
from headwatch.probes.families import Candidate
from headwatch.probes.tokenization import PairTokenizer

SUM = re.compile(r"Compute (\d+)\+(\d+)\. Answer: \\boxed\{(\d*)")
SHOWN_SUM = re.compile(r"((?:\d+\+\d+=\d+\n)+)(\d+)\+(\d+)=(\d*)")
STORY = re.compile(
    r"(\w+) has (\d+) (\w+)\. \1 gets (\d+) more \3 and gives (\d+) \3 to (\w+)\. "
    r"How many \3 does \1 have now\? Answer: \\boxed\{(\d*)"
)
EQUATION = re.compile(r"Solve (\d)x \+ (\d+) = (\d+) for x\. Answer: \\boxed\{(\d*)")
TABLE = re.compile(r"Table: (.*)\. The value of (\w) is \\boxed\{(\d*)")


def solve(family: str, text: str) -> tuple[str, str]:
    """The correct answer of a prompt, and the shared start of the answer that the prompt already contains."""
    if family in ("addition", "carry"):
        a, b, start = SUM.fullmatch(text).groups()
        return str(int(a) + int(b)), start
    if family == "sums":
        shown, a, b, start = SHOWN_SUM.fullmatch(text).groups()
        lines = [re.split(r"[+=]", line) for line in shown.splitlines()]
        assert len(lines) == 4
        assert all(int(x) + int(y) == int(z) for x, y, z in lines)
        assert [a, b] not in [line[:2] for line in lines]
        return str(int(a) + int(b)), start
    if family == "word_problem":
        name, has, _, gets, gives, receiver, start = STORY.fullmatch(text).groups()
        assert name != receiver
        return str(int(has) + int(gets) - int(gives)), start
    if family == "linear_equation":
        p, q, r, start = EQUATION.fullmatch(text).groups()
        x, rest = divmod(int(r) - int(q), int(p))
        assert rest == 0
        assert 2 <= x <= 9
        return str(x), start
    table, key, start = TABLE.fullmatch(text).groups()
    entries = dict(entry.split(" = ") for entry in table.split("; "))
    assert len(entries) == len(set(entries.values())) == 6
    return entries[key], start


def real_tokens(probes: ProbeSet, side: str, row: int) -> list[int]:
    return getattr(probes, side)[row][probes.attention_mask[row].bool()].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_correct_and_read_at_their_first_difference(family, tokenizer):
    probes = ProbeSet.generate(family, tokenizer, n_pairs=64)
    assert len(probes) == 64
    assert probes.family_names == (family,)
    for row, texts in enumerate(probes.texts):
        clean, corrupted = texts
        (right, start), (other, other_start) = solve(family, clean), solve(family, corrupted)
        assert right.startswith(start)
        assert other.startswith(other_start)
        assert start == other_start
        for answer, rest in zip(probes.answers[row].tolist(), (right, other), strict=True):
            piece = tokenizer.decode([answer]).strip()
            assert piece
            assert rest[len(start) :].startswith(piece)
        assert probes.answers[row, 0] != probes.answers[row, 1]
        assert probes.targets[row].tolist() == [probes.answers[row, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_ids_are_those_of_the_whole_text(family, tokenizer):
    """Rules 1 and 2: the prompt's ids and the answer token are a prefix of the ids of the whole text."""
    probes = ProbeSet.generate(family, tokenizer, n_pairs=64)
    for row, texts in enumerate(probes.texts):
        for side, text, answer in zip(("clean", "corrupted"), texts, probes.answers[row].tolist(), strict=True):
            right, start = solve(family, text)
            whole = tokenizer(text + right[len(start) :])["input_ids"]
            inputs = real_tokens(probes, side, row)
            assert whole[: len(inputs) + 1] == [*inputs, answer]
        assert probes.read_positions[row].tolist() == [probes.clean.shape[1] - 1]  # left padding: the last column
    assert (probes.clean != probes.corrupted).any(1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_distinct(family, char_tokenizer):
    probes = ProbeSet.generate(family, char_tokenizer, n_pairs=200)
    assert len({clean for clean, _ in probes.texts}) == 200


def test_every_prompt_has_one_start_token(triple_tokenizer):
    probes = ProbeSet.generate("word_problem", triple_tokenizer, n_pairs=32)
    for row in range(32):
        for side in ("clean", "corrupted"):
            assert real_tokens(probes, side, row).count(triple_tokenizer.bos_token_id) == 1
            assert real_tokens(probes, side, row)[0] == triple_tokenizer.bos_token_id


def test_three_digits_are_one_token(triple_tokenizer):
    """Checks the fixture: otherwise no test would cover tokens of several digits."""
    probes = ProbeSet.generate("addition", triple_tokenizer, n_pairs=64)
    assert any(len(triple_tokenizer.decode([answer])) == 3 for answer in probes.answers[:, 0].tolist())
    assert all(text.endswith("{") for pair in probes.texts for text in pair)


@pytest.mark.parametrize("digits", [2, 3])
def test_carry_is_removed(digits, char_tokenizer):
    probes = ProbeSet.generate("carry", char_tokenizer, n_pairs=64, digits=digits)
    for texts in probes.texts:
        (a, b), (other_a, other_b) = (map(int, SUM.fullmatch(text).groups()[:2]) for text in texts)
        assert a == other_a
        assert b // 10 == other_b // 10
        assert a % 10 + b % 10 >= 10 > other_a % 10 + other_b % 10
        assert len(str(a + b)) == len(str(a + other_b))
        assert str(a + b)[0] != str(a + other_b)[0]
        assert len(str(a)) == len(str(b)) == len(str(other_b)) == digits


def test_addition_keeps_the_first_number_and_the_digit_counts(char_tokenizer):
    probes = ProbeSet.generate("addition", char_tokenizer, n_pairs=64, digits=3)
    for texts in probes.texts:
        (a, b), (other_a, other_b) = (SUM.fullmatch(text).groups()[:2] for text in texts)
        assert a == other_a
        assert len(a) == len(b) == len(other_b) == 3
        assert b != other_b


def test_sums_are_small_and_keep_the_first_number_and_the_digit_counts(char_tokenizer):
    probes = ProbeSet.generate("sums", char_tokenizer, n_pairs=500)
    numbers = set()
    for texts in probes.texts:
        (shown, a, b, _), (other_shown, other_a, other_b, _) = (SHOWN_SUM.fullmatch(text).groups() for text in texts)
        assert (shown, a) == (other_shown, other_a)
        assert not {(a, b), (a, other_b)} & set(re.findall(r"(\d+)\+(\d+)=", shown))
        assert b != other_b
        assert len(b) == len(other_b)
        assert len(str(int(a) + int(b))) == len(str(int(a) + int(other_b)))
        numbers |= {int(a), int(b), int(other_b)}
    assert numbers == set(range(1, 21))
    assert probes.rejected == ()  # one token per character: every candidate has equal lengths


def test_pairs_depend_on_the_seed_and_not_on_other_families(digit_tokenizer):
    both = ProbeSet.generate(["recall", "addition"], digit_tokenizer, n_pairs=16, seed=3)
    assert both.families == ("recall",) * 16 + ("addition",) * 16
    for family in ("recall", "addition"):
        alone = ProbeSet.generate(family, digit_tokenizer, n_pairs=16, seed=3)
        assert both.select(family).fingerprint == alone.fingerprint
        assert alone.fingerprint != ProbeSet.generate(family, digit_tokenizer, n_pairs=16, seed=4).fingerprint


def test_same_pairs_in_another_process(char_tokenizer, tmp_path):
    char_tokenizer.save_pretrained(tmp_path)
    script = (
        "import sys; from transformers import AutoTokenizer; from headwatch.probes import FAMILIES, ProbeSet; "
        "print(ProbeSet.generate(list(FAMILIES), AutoTokenizer.from_pretrained(sys.argv[1]), n_pairs=8).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == ProbeSet.generate(list(FAMILIES), char_tokenizer, n_pairs=8).fingerprint


def test_tokenizer_is_not_changed(digit_tokenizer):
    digit_tokenizer.backend_tokenizer.enable_truncation(5, stride=1)
    digit_tokenizer.backend_tokenizer.enable_padding(length=7)
    try:
        before = (
            digit_tokenizer.backend_tokenizer.to_str(),
            dict(digit_tokenizer.special_tokens_map),
            digit_tokenizer.padding_side,
        )
        probes = ProbeSet.generate("word_problem", digit_tokenizer, n_pairs=4)
        assert probes.clean.shape[1] > 7  # the pairs are neither truncated nor padded
        after = (
            digit_tokenizer.backend_tokenizer.to_str(),
            dict(digit_tokenizer.special_tokens_map),
            digit_tokenizer.padding_side,
        )
        assert before == after
    finally:
        digit_tokenizer.backend_tokenizer.no_truncation()
        digit_tokenizer.backend_tokenizer.no_padding()


def test_processor_stands_for_its_tokenizer(digit_tokenizer):
    class Processor:
        tokenizer = digit_tokenizer

    generated = ProbeSet.generate("recall", Processor(), n_pairs=4)
    assert generated.fingerprint == ProbeSet.generate("recall", digit_tokenizer, n_pairs=4).fingerprint


def test_family_that_cannot_be_aligned():
    with pytest.raises(UserError) as caught:
        ProbeSet.generate(["recall", "addition"], brace_and_digit(), n_pairs=64)
    assert re.match(
        r"family 'recall': tokenizer '\w+' aligned 0 of 200 candidates and 64 pairs are needed; most common reason: "
        r"prompt and answer merge when they are tokenised together \(200 of 200\), e\.g\. recall: ",
        str(caught.value),
    )
    assert "\n" not in str(caught.value)


def test_rejected_candidates_are_listed_and_kept_ones_align():
    tokenizer = uneven_numbers()
    probes = ProbeSet.generate("addition", tokenizer, n_pairs=32)
    assert probes.rejected
    assert all(line.startswith("addition: the ") and "Compute " in line for line in probes.rejected)
    assert not {clean for clean, _ in probes.texts} & {line.split("'")[1] for line in probes.rejected}
    for clean, corrupted in probes.texts:
        assert len(tokenizer(clean)["input_ids"]) == len(tokenizer(corrupted)["input_ids"])


def test_text_outside_the_vocabulary_is_refused():
    tokenizer = characters(unk_token="<unk>")
    vocabulary = tokenizer.get_vocab()
    assert "+" in vocabulary
    backend = tokenizer.backend_tokenizer
    backend.model = models.WordLevel({t: i for t, i in vocabulary.items() if t != "+"}, unk_token="<unk>")
    with pytest.raises(UserError, match=r"aligned 0 of 200 .*no token for part of the text"):
        ProbeSet.generate("addition", tokenizer)
    assert len(ProbeSet.generate("recall", tokenizer, n_pairs=4)) == 4
    on_purpose = Candidate("<unk>1=", "<unk>2=", "1", "2")
    assert PairTokenizer(tokenizer).align(on_purpose).clean[0] == tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"family": "additon"}, ["'additon'", "addition", "recall"]),
        ({"family": 3}, ["family=3", "recall"]),
        ({"family": ["carry", None]}, ["None", "recall"]),
        ({"family": []}, ["families=[]", "addition"]),
        ({"family": ["carry", "carry"]}, ["'carry'", "2 times"]),
        ({"family": "carry", "n_pairs": 0}, ["n_pairs=0"]),
        ({"family": "carry", "n_pairs": 2.5}, ["n_pairs=2.5"]),
        ({"family": "carry", "seed": "a"}, ["seed='a'"]),
        ({"family": "recall", "digits": 3}, ["digits=3", "recall", "entries"]),
        ({"family": "addition", "digits": 9}, ["digits=9", "'addition'", "1 to 6"]),
        ({"family": "addition", "digits": 1, "n_pairs": 5000}, ["n_pairs=5000", "distinct pairs", "raise digits"]),
        ({"family": "addition", "tokenizer": None}, ["need a tokenizer"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_arguments(arguments, parts, digit_tokenizer):
    with pytest.raises(UserError) as caught:
        ProbeSet.generate(**{"tokenizer": digit_tokenizer, **arguments})
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clean_prompts_are_reused_only_when_too_few(digit_tokenizer):
    """One-digit addition has 81 clean prompts: enough for 60 pairs, not for 200."""
    few = ProbeSet.generate("addition", digit_tokenizer, n_pairs=60, digits=1)
    assert len({clean for clean, _ in few.texts}) == 60
    many = ProbeSet.generate("addition", digit_tokenizer, n_pairs=200, digits=1)
    assert len(set(many.texts)) == 200


def test_generated_tensors_are_int64_and_left_padded(char_tokenizer):
    probes = ProbeSet.generate(["recall", "addition"], char_tokenizer, n_pairs=4)
    assert {t.dtype for t in (probes.clean, probes.corrupted, probes.attention_mask, probes.answers)} == {torch.long}
    assert (probes.attention_mask.diff(dim=1) >= 0).all()
    assert (probes.clean[probes.attention_mask == 0] == char_tokenizer.pad_token_id).all()
    assert (probes.attention_mask == 0).any()
