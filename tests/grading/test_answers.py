"""Which answers are right: whole expressions are, texts that contain the right one are not."""

import json
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from answer_table import TABLE

from headwatch.grading.answers import expression, final_answer
from headwatch.training import rewards

DATA = Path(__file__).parents[2].joinpath("../shared/data").resolve()
BLOCK = "<think>\nLet us see.\n</think>\n<answer>\n{}\n</answer>"


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer of the table never ends; all others take well under a second."""
    monkeypatch.setattr(rewards._grader, "timeout", 2.0)


def test_the_table_has_at_least_two_hundred_answers() -> None:
    assert sum(map(len, TABLE.values())) >= 200


@pytest.mark.parametrize("group", list(TABLE))
def test_answers_inside_a_block(group: str) -> None:
    rows = TABLE[group]
    grades = rewards.accuracy([BLOCK.format(answer) for answer, _, _ in rows], answer=[gold for _, gold, _ in rows])
    wrong = [row for row, grade in zip(rows, grades, strict=True) if grade != float(row[2])]
    assert wrong == []


@pytest.mark.parametrize("group", ["expressions", "hostile"])
def test_answers_inside_a_box(group: str) -> None:
    rows = [row for row in TABLE[group] if row[0].count("{") == row[0].count("}") and "$" not in row[0]]
    texts = [f"So the result is $\\boxed{{{answer}}}$." for answer, _, _ in rows]
    grades = rewards.accuracy(texts, answer=[gold for _, gold, _ in rows])
    strict = rewards.strict_accuracy(texts, answer=[gold for _, gold, _ in rows])
    assert [row for row, grade in zip(rows, grades, strict=True) if grade != float(row[2])] == []
    assert [row for row, grade in zip(rows, strict, strict=True) if grade != float(row[2])] == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>71</answer><answer>72</answer>", "72"),
        ("\\boxed{71} and then <answer></answer>", ""),
        ("first \\boxed{71}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is $72$. I hope it is correct.", "72"),
        ("The answer is 72.", ""),
        ("\\boxed{72", ""),
    ],
)
def test_where_an_answer_is_looked_for(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize("file", ["aime24", "aime25", "amc23_qwen", "amc_aimo", "gsm8k_test", "math500"])
@pytest.mark.parametrize("form", ["{}", "\\boxed{{{}}}", "${}$", "The answer is {}."])
def test_gold_answers_of_benchmarks_are_right_in_every_honest_form(file: str, form: str) -> None:
    path = DATA / f"{file}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    golds = [str(json.loads(line)["answer"]).split("####")[-1].strip() for line in lines]
    grades = rewards.accuracy([BLOCK.format(form.format(gold)) for gold in golds], answer=golds)
    # math-verify parses no column vector and no matrix: not even the gold one
    assert [g for g, grade in zip(golds, grades, strict=True) if grade != 1.0 and "pmatrix" not in g] == []


def test_an_expression_of_any_length_or_kind_ends_quickly() -> None:
    for text in ("{" * 5000, "$" * 999, "\\boxed{" * 300, "x=" * 400, "(" * 900, "a " * 499, "1," * 499):
        assert expression(text) == "" or len(expression(text)) <= len(text)
