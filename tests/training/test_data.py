"""Rows for SFT and GRPO from local files: their format, the filters and the counts."""

import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict

from headwatch.demo.tiny_model import build_tokenizer
from headwatch.demo.toy_rows import write_rows
from headwatch.errors import UserError
from headwatch.probes.system_prompts import OPEN_R1_PROMPT
from headwatch.training.data import (
    KEPT,
    LONG_PROMPT,
    LONG_ROW,
    NO_ANSWER,
    DataArguments,
    load_rows,
    prepare,
    problem_of,
)

GSM8K = Path(__file__).parents[2].joinpath("../shared/data/gsm8k_train.jsonl").resolve()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def ready(tokenizer, path, method="grpo", max_length=None, **options):
    arguments = DataArguments(dataset_name=str(path), **options)
    return prepare(load_rows(arguments), arguments, tokenizer, method, max_length=max_length)


def test_grpo_rows_are_prompts_with_the_papers_system_prompt(tokenizer, tmp_path):
    rows = ready(tokenizer, write_rows(tmp_path / "a.jsonl", "openai/gsm8k")).rows
    assert set(rows.column_names) == {"prompt", "answer", "solution"}
    for row in rows:
        system, user = row["prompt"]
        assert system == {"role": "system", "content": OPEN_R1_PROMPT}
        a, b = [int(word) for word in user["content"].replace(",", "").split() if word.isdigit()]
        assert a + b == int(row["answer"])
        assert "####" not in row["solution"]


@pytest.mark.parametrize("like", ["openai/gsm8k", "open-r1/OpenR1-Math-220k"])
def test_sft_rows_end_in_the_answer_and_are_not_truncated(tokenizer, tmp_path, like):
    found = ready(tokenizer, write_rows(tmp_path / "a.jsonl", like), "sft", max_length=2048, system_prompt="none")
    assert found.counts == {KEPT: 56, NO_ANSWER: 4, LONG_ROW: 4}
    for row in found.rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"].startswith("<think>\n")
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert len(tokenizer(text)["input_ids"]) <= 2048
    last = found.rows[0]["messages"][1]["content"]
    assert last.endswith("\n</answer>" if "gsm8k" in like else "}.")


def test_skipped_rows_are_counted(tokenizer, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", "open-r1/OpenR1-Math-220k")
    found = ready(tokenizer, path, max_prompt_tokens=2048)
    assert found.counts == {KEPT: 56, NO_ANSWER: 4, LONG_PROMPT: 4}
    assert (found.available, len(found.rows), found.complete) == (64, 56, True)
    assert "56 rows of 64 (64 read, skipped: 4 no answer, 4 prompt over max_prompt_tokens)" in found.summary()


def test_a_larger_sample_contains_the_smaller_one(tokenizer, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", "gsm8k", n=600)
    small = ready(tokenizer, path, n_problems=20)
    assert small.rows["prompt"] == ready(tokenizer, path, n_problems=20).rows["prompt"]
    assert small.rows["prompt"] == ready(tokenizer, path, n_problems=300).rows["prompt"][:20]
    assert small.rows["prompt"] != ready(tokenizer, path, n_problems=20, sample_seed=1).rows["prompt"]
    assert small.counts[KEPT] == len(small.rows) == 20
    everything = ready(tokenizer, path, n_problems=5000)
    assert (len(everything.rows), everything.complete) == (600 - 38, False)  # one row in 16 has no answer
    assert sum(everything.counts.values()) == 600


def test_converted_rows_are_cached(tokenizer, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl", "gsm8k", seed=5)
    first = ready(tokenizer, path)
    tokenizer("used in between")
    monkeypatch.setattr("headwatch.training.data._tokens", lambda *_: pytest.fail("converted again"))
    again = ready(tokenizer, path)
    assert again.rows["prompt"] == first.rows["prompt"]
    with pytest.raises(BaseException, match="converted again"):  # another limit, another cache entry
        ready(tokenizer, path, max_prompt_tokens=7)


def test_local_copies(tokenizer, tmp_path):
    """A folder that `save_to_disk` wrote, one of a dataset repository, and a parquet file hold the same rows."""
    path = write_rows(tmp_path / "a.jsonl", "gsm8k")
    rows = Dataset.from_list([json.loads(line) for line in path.read_text().splitlines()])
    rows.save_to_disk(str(tmp_path / "saved"))
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved_dict"))
    (tmp_path / "repository").mkdir()
    rows.to_parquet(str(tmp_path / "repository" / "train.parquet"))
    expected = ready(tokenizer, path).rows["prompt"]
    for copy in ("saved", "saved_dict", "repository", "repository/train.parquet"):
        assert ready(tokenizer, tmp_path / copy).rows["prompt"] == expected, copy


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Q", "answer": "2+2=<<2+2=4>>4\n#### 1,234"}, ("Q", "1234", "2+2=4")),
        ({"question": "Q", "answer": "open <<2+2\n#### -4"}, ("Q", "-4", "open <<2+2")),
        ({"problem": "P", "answer": r"\frac{1}{3}", "solution": " S "}, ("P", r"\frac{1}{3}", "S")),
        ({"problem": "P", "answer": 5.0, "solution": None}, ("P", "5.0", "")),
        ({"problem": None, "answer": None}, ("", "", "")),
        ({"question": None, "answer": None, "problem": "P", "solution": "S"}, ("P", "", "S")),
        ({"input": " I ", "target": 0}, ("I", "0", "")),
        ({"input": "I", "target": None}, ("I", "", "")),
        ({"Body": "Ann has 3 pens", "Question": "How many?", "Answer": 3.0}, ("Ann has 3 pens. How many?", "3.0", "")),
        ({"Body": "Ann has 3 pens. ", "Question": " How many?", "Answer": 3}, ("Ann has 3 pens. How many?", "3", "")),
        ({"Body": "Ann has 3 pens.", "Question": None, "Answer": 3}, ("", "", "")),
    ],
)
def test_problem_answer_solution(row, expected):
    assert problem_of(row) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "only text"}\n', "columns are text; rows need question and answer"),
        ("a.jsonl", '{"input": "no target"}\n', "columns are input; rows need question and answer"),
        ("a.txt", "x", "not '.txt'"),
        ("a.jsonl", None, "no such file"),
        ("a.jsonl", "", "the file is empty"),
        ("a.json", "[]", "holds no rows"),
        ("a.jsonl", '{"question": "Q", "answer": ', r"could not be read as \.jsonl: JSON"),
        ("a.jsonl", '{"question": "Q", "answer": ""}\n', "1 no answer"),
    ],
)
def test_a_mistake_in_a_file(tokenizer, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        ready(tokenizer, tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_mistake_in_an_option(tokenizer, tmp_path):
    with pytest.raises(UserError, match="--dataset_name is missing"):
        load_rows(DataArguments())
    with pytest.raises(UserError, match="local copy"):  # tests run offline
        load_rows(DataArguments(dataset_name="nobody/no-such-dataset"))
    with pytest.raises(UserError, match="--n_problems 0"):
        ready(tokenizer, write_rows(tmp_path / "c.jsonl", "gsm8k"), n_problems=0)
    bare = build_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="--chat_template chatml"):
        ready(bare, tmp_path / "c.jsonl")


def test_sft_needs_worked_solutions(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"input": f"{n} + 1?", "target": n + 1}) + "\n" for n in range(9)))
    rows = ready(tokenizer, path, system_prompt="none").rows
    assert all(int(row["prompt"][0]["content"].split()[0]) + 1 == int(row["answer"]) for row in rows)
    assert len(rows) == 9
    with pytest.raises(UserError, match=r"input, target: answers without worked solutions.*GRPO recipe"):
        ready(tokenizer, path, "sft")
    path.write_text('{"input": "1 + 1?", "target": 2, "solution": "One more than 1."}\n')
    reply = ready(tokenizer, path, "sft").rows[0]["messages"][-1]["content"]
    assert reply == "<think>\nOne more than 1.\n</think>\n<answer>\n2\n</answer>"


@pytest.mark.parametrize(
    ("name", "n", "ending", "answer"),
    [
        ("multiarith", 600, "ate 35 pieces the first night, how many pieces do they have left?", "39"),
        ("svamp_test", 1000, "organized into 93 groups. How big is each group of bananas?", "145.0"),
    ],
)
def test_multiarith_and_svamp(tokenizer, name, n, ending, answer):
    file = GSM8K.parent / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip("no ../shared/data")
    found = ready(tokenizer, file)
    assert found.counts == {KEPT: n}
    (row,) = [row for row in found.rows if row["prompt"][-1]["content"].endswith(ending)]
    assert row["answer"] == answer


@pytest.mark.skipif(not GSM8K.is_file(), reason="no ../shared/data")
def test_gsm8k(tokenizer):
    found = ready(tokenizer, GSM8K, n_problems=500)
    assert found.counts == {KEPT: 500}
    assert all(answer.lstrip("-").replace(".", "").isdigit() for answer in found.rows["answer"])
    assert not any("<<" in solution or "####" in solution for solution in found.rows["solution"])
    assert Counter(len(prompt) for prompt in found.rows["prompt"]) == {2: 500}
