"""The opener family without a model: fixed texts, given samples, sources of questions, and errors."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Tokenizer

from headwatch.demo.tiny_model import build_tokenizer
from headwatch.errors import UserError
from headwatch.probes import Openers, ProbeSet
from headwatch.probes.openers import DIRECT, REASONING
from headwatch.probes.questions import load_questions

DATA = Path(__file__).parents[2].joinpath("../shared/data").resolve()
SYSTEM = "Think first."
ASKED = "<|im_start|>system\nThink first.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def chat() -> Qwen2Tokenizer:
    return build_tokenizer()


@pytest.fixture
def questions(tmp_path: Path):
    """Writes rows, or raw lines, to a .jsonl file; returns its path."""

    def write(*rows: object) -> str:
        path = tmp_path / "questions.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return str(path)

    return write


def fixed(questions: object, **options: object) -> Openers:
    return Openers(**{"questions": questions, "source": "fixed", "system_prompt": SYSTEM, **options})


def inputs(probes: ProbeSet, row: int) -> tuple[list[int], list[int]]:
    real = probes.attention_mask[row].bool()
    return probes.clean[row][real].tolist(), probes.corrupted[row][real].tolist()


def sums(n: int) -> list[dict[str, str]]:
    return [{"problem": f"What is {i}+{i}?"} for i in range(n)]


@pytest.mark.parametrize(("metric", "read"), [("kl", 1), ("nll", 16)])
def test_a_fixed_pair_is_the_prompt_and_two_openers_of_equal_length(chat, questions, metric, read):
    probes = fixed(questions(*sums(6)), tokens=12, metric=metric).make(chat, n_pairs=6)
    assert (probes.families, probes.rejected) == (("openers",) * 6, ())
    assert (probes.answers == -1).all()
    for row, texts in enumerate(probes.texts):
        clean, corrupted = inputs(probes, row)
        question = next(q["problem"] for q in sums(6) if q["problem"] in texts[0])
        prompt = chat(ASKED.format(question))["input_ids"]
        assert clean[: len(prompt)] == corrupted[: len(prompt)] == prompt
        assert len(clean) == len(corrupted) == len(prompt) + 12 + read - 1
        ours, theirs = clean[len(prompt) :], corrupted[len(prompt) :]
        (reasoning,) = {r for r in REASONING if chat("<think>\n" + r)["input_ids"][: len(ours)] == ours}
        whole = chat("<think>\n" + reasoning)["input_ids"]
        assert any(chat(d)["input_ids"][:12] == theirs[:12] for d in DIRECT)
        assert theirs[12:] == ours[12:]  # after the openers, both sides have the clean continuation as input
        assert probes.targets[row].tolist() == whole[12 : 12 + read]
        width = probes.clean.shape[1]
        assert probes.read_positions[row].tolist() == list(range(width - read, width))
        assert [chat(text)["input_ids"] for text in texts] == [clean, corrupted]


def test_pairs_depend_on_the_seed(chat, questions):
    openers = fixed(questions(*sums(12)))
    one = openers.make(chat, n_pairs=8, seed=3)
    assert one.fingerprint == openers.make(chat, n_pairs=8, seed=3).fingerprint
    assert one.fingerprint != openers.make(chat, n_pairs=8, seed=4).fingerprint
    assert inputs(openers.make(chat, n_pairs=5, seed=3), 4) == inputs(
        one, 4
    )  # a smaller set is the start of a larger one


def test_a_start_token_is_added_once(triple_tokenizer, questions):
    """As in Llama 3: a start token before every text, which the template may write too."""
    triple_tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}A:"
    )
    try:
        probes = fixed(questions(*sums(3))).make(triple_tokenizer, n_pairs=3)
    finally:
        triple_tokenizer.chat_template = None
    for row in range(3):
        for side in inputs(probes, row):
            assert side[0] == triple_tokenizer.bos_token_id
            assert side.count(triple_tokenizer.bos_token_id) == 1


def test_think_is_added_only_where_the_template_does_not(questions):
    chat = build_tokenizer()
    chat.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    probes = fixed(questions(*sums(2))).make(chat, n_pairs=2)
    assert [clean.count("<think>") for clean, _ in probes.texts] == [1, 1]


def test_an_opener_that_merges_with_the_prompt_is_rejected(questions):
    chat = build_tokenizer()
    chat.chat_template += "{% if add_generation_prompt %}box{% endif %}"
    with pytest.raises(UserError, match="most common reason: prompt and opener merge"):
        fixed(questions(*sums(2)), start="ed ").make(chat, n_pairs=2)


# --- questions --------------------------------------------------------------------------------------------------------


def test_rows_without_a_question_are_listed(chat, questions):
    rows = [
        {"problem": "What is 1+1?"},
        {"question": "  What is 2+2?\n"},
        {"problem": "", "question": "What is 3+3?"},
        {"problem": 7},
        {"problem": None},
        {"answer": 4},
        ["no object"],
        '{"problem": "cut off',
        {"problem": "What is 1+1?"},
        {"problem": "λ ≥ 0 🦜 <|im_end|> {{ 1 }} \\frac{m}{n} \u2028"},
    ]
    path = questions(*rows)
    found, refused = load_questions([path])
    assert found[:3] == ["What is 1+1?", "What is 2+2?", "What is 3+3?"]
    assert len(found) == 4
    assert len(refused) == 6
    assert [line.split(": ")[1] for line in refused] == ["line 4", "line 5", "line 6", "line 7", "line 8", "line 9"]
    assert "repeated question" in refused[-1]
    probes = fixed(path).make(chat, n_pairs=4)
    assert len(probes) == 4
    assert probes.rejected == tuple(f"openers: {line}" for line in refused)


def test_a_question_that_is_too_long_is_rejected(chat, questions):
    path = questions({"problem": "long " * 1000}, *sums(3))
    probes = fixed(path).make(chat, n_pairs=3)
    assert all("long long" not in clean for clean, _ in probes.texts)
    assert [line.split(" (")[0] for line in probes.rejected] in ([], ["openers: the prompt is too long"])
    with pytest.raises(UserError) as caught:
        fixed(questions({"problem": "long " * 1000})).make(chat, n_pairs=2)
    message = str(caught.value)
    for part in ("0 of 2 pairs", "1 questions", "the prompt is too long (6 of 6)", "give more questions"):
        assert part in message
    assert "\n" not in message


def test_a_question_is_reused_only_when_too_few(chat, questions):
    path = questions(*sums(3))
    once = fixed(path).make(chat, n_pairs=3)
    assert len({clean.split("user\n")[1].split("<|im_end|>")[0] for clean, _ in once.texts}) == 3
    again = fixed(path).make(chat, n_pairs=8)
    assert len(set(again.texts)) == 8
    with pytest.raises(UserError, match=r"of 40 pairs could be made from 3 questions"):
        fixed(path).make(chat, n_pairs=40)


@pytest.mark.parametrize("name", ["aime24", "aime25", "amc_aimo"])
def test_real_questions(chat, name):
    path = DATA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data is not here")
    n = sum(1 for line in path.read_text().splitlines() if line)
    probes = fixed(str(path)).make(chat, n_pairs=n // 2)
    assert len(probes) == n // 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere.jsonl", "no such file"),
        ("./nowhere", "give a .jsonl file"),
        ("tests", "give a .jsonl file"),
        ("nobody/no-such-questions", "could not be loaded from the Hub"),
    ],
)
def test_sources_that_cannot_be_read(chat, source, message):
    with pytest.raises(UserError) as caught:
        fixed(source).make(chat, n_pairs=2)
    assert source in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_without_questions_or_text(chat, tmp_path, questions):
    with pytest.raises(UserError, match=r"no question in it.*problem or a question"):
        fixed(questions({"answer": 3})).make(chat)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        fixed(str(tmp_path / "bytes.jsonl")).make(chat)


# --- samples ----------------------------------------------------------------------------------------------------------


class FixedSamples:
    """A stand-in for a model: the same (reasoning, direct) token ids for every question."""

    def __init__(self, reasoning: list[int], direct: list[int]) -> None:
        self.answers, self.prompts, self.seeds = (reasoning, direct), [], []

    def __call__(self, prompts, seeds, n):
        half = len(prompts) // 2
        self.prompts, self.seeds = list(prompts), list(seeds)
        return [self.answers[0][:n]] * half + [self.answers[1][:n]] * half


def test_openers_are_sampled_from_two_prompts_and_follow_the_first(chat, questions):
    sample = FixedSamples(
        chat("Let me see. 12 and so on")["input_ids"], chat("The answer is 12 plus more")["input_ids"]
    )
    openers = Openers(questions(*sums(2)), tokens=10, system_prompt=SYSTEM)
    probes = openers.make(chat, 2, 0, sample)
    texts = [chat.decode(ids) for ids in sample.prompts]
    assert all(text.startswith("<|im_start|>system\nThink first.") and text.endswith("<think>\n") for text in texts[:2])
    assert all(text.startswith("<|im_start|>user\nWhat is") and text.endswith("assistant\n") for text in texts[2:])
    assert len(set(sample.seeds)) == 4
    for row, (clean, corrupted) in enumerate(probes.texts):
        question = next(q["problem"] for q in sums(2) if q["problem"] in clean)
        start = chat("<think>\nLet me see. 12 and so on")["input_ids"]
        assert clean == ASKED.format(question) + chat.decode(start[:10])
        assert corrupted == ASKED.format(question) + chat.decode(chat("The answer is 12 plus more")["input_ids"][:10])
        assert probes.targets[row].tolist() == [start[10]]


END, BEYOND = "<|im_end|>", 10**6


@pytest.mark.parametrize(
    ("reasoning", "direct", "start", "why"),
    [
        ("abcdefghijklmnopqrst", "ab" + END + "cdefghijkl", "<think>\n", "an opener is too short"),
        ("ab" + END + "cdefghijkl", "abcdefghijklmnopqrst", "", "an opener is too short"),
        ("abcd", "abcdefgh", "", "an opener is too short"),  # four tokens, but none for the metric to read
        ("abcdefghijklmnopqrst", "abcdefghijklmnopqrst", "", "both openers are the same"),
    ],
    ids=["direct ends", "reasoning ends", "nothing to read", "identical"],
)
def test_samples_that_are_rejected(chat, questions, reasoning, direct, start, why):
    sample = FixedSamples(chat(reasoning)["input_ids"], chat(direct)["input_ids"])
    with pytest.raises(UserError, match=rf"0 of 2 pairs.*most common reason: {why}"):
        Openers(questions(*sums(2)), system_prompt=SYSTEM, start=start).make(chat, 2, 0, sample)


def test_an_unknown_token_id_ends_an_answer(chat, questions):
    direct = chat("The sum:")["input_ids"]
    sample = FixedSamples(chat("Let me see. 12 and so on")["input_ids"], [*direct, BEYOND, *direct])
    probes = Openers(questions(*sums(1)), system_prompt=SYSTEM).make(chat, 1, 0, sample)
    prompt = chat(ASKED.format("What is 0+0?"))["input_ids"]
    assert inputs(probes, 0)[1] == prompt + direct
    assert len(inputs(probes, 0)[0]) == len(prompt) + len(direct)


def test_a_repeated_pair_is_rejected(chat, questions):
    sample = FixedSamples(
        chat("Let me see. 12 and so on")["input_ids"], chat("The answer is 12 plus more")["input_ids"]
    )
    with pytest.raises(UserError, match=r"1 of 2 pairs.*most common reason: repeated pair \(5 of 5\)"):
        Openers(questions(*sums(1)), system_prompt=SYSTEM).make(chat, 2, 0, sample)


def test_texts_are_empty_where_their_ids_would_differ(chat, questions):
    spelled = [chat.convert_tokens_to_ids(letter) for letter in "boxed"] * 4  # "boxed" is one token
    sample = FixedSamples(spelled, chat("The answer is 12 plus more")["input_ids"])
    probes = Openers(questions(*sums(1)), system_prompt=SYSTEM).make(chat, 1, 0, sample)
    assert probes.texts == (("", ""),)


def test_sampled_openers_need_a_model(chat, questions):
    with pytest.raises(UserError, match=r'needs the model.*source="fixed"'):
        Openers(questions(*sums(2))).make(chat)


# --- the set ----------------------------------------------------------------------------------------------------------


def test_a_saved_set_loads_and_joins_families_in_the_order_of_the_names(chat, questions, tmp_path):
    openers = fixed(questions(*sums(4)), metric="nll").make(chat, n_pairs=4)
    openers.save(tmp_path / "openers.safetensors")
    assert ProbeSet.load(tmp_path / "openers.safetensors", chat).fingerprint == openers.fingerprint
    mixed = ProbeSet.resolve(["recall", "openers", "addition"], chat, n_pairs=4, openers=openers)
    assert mixed.family_names == ("recall", "openers", "addition")
    assert mixed.select("openers").fingerprint == openers.fingerprint
    assert mixed.select("addition").fingerprint == ProbeSet.generate("addition", chat, n_pairs=4).fingerprint
    assert ProbeSet.resolve("openers", chat, openers=openers).fingerprint == openers.fingerprint
    again = ProbeSet.resolve(["recall", "openers", "addition"], chat, n_pairs=4, openers=mixed.select("openers"))
    assert again.fingerprint == mixed.fingerprint


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"questions": ()}, ["questions=()", "Hub", ".jsonl"]),
        ({"questions": [3]}, ["questions=[3]"]),
        ({"source": "made up"}, ["made up", "sampled, fixed"]),
        ({"tokens": 3}, ["tokens=3", "4 to 256"]),
        ({"tokens": 8.0}, ["tokens=8.0"]),
        ({"metric": "logit_diff"}, ["logit_diff", "no answers", "kl or nll"]),
        ({"temperature": 0.0}, ["temperature=0.0"]),
        ({"top_p": 1.5}, ["top_p=1.5"]),
    ],
    ids=str,
)
def test_bad_options(options, parts):
    with pytest.raises(UserError) as caught:
        Openers(**options)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_bad_arguments(char_tokenizer, chat, questions):
    path = questions(*sums(2))
    with pytest.raises(UserError, match="chat template"):
        fixed(path).make(char_tokenizer, 2)
    with pytest.raises(UserError, match="n_pairs=0"):
        fixed(path).make(chat, 0)
    for ask in (lambda: ProbeSet.generate("openers", chat), lambda: ProbeSet.resolve(["addition", "openers"], chat)):
        with pytest.raises(UserError, match=r"made from questions.*hw\.Openers"):
            ask()
    given = fixed(path).make(chat, 2)
    for names, message in [(["openers", "openers"], "2 times"), (["openers", "additon"], "additon")]:
        with pytest.raises(UserError, match=message):
            ProbeSet.resolve(names, chat, openers=given)
    assert torch.equal(given.clean, fixed(path).make(chat, 2).clean)
