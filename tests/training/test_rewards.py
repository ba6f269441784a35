"""The rewards, on correct completions and on completions that try to obtain a reward without an answer."""

import json
import threading
import time

import pytest

pytest.importorskip("math_verify")

from headwatch.errors import UserError
from headwatch.grading.math_grader import MathGrader, Task, Worker
from headwatch.training import rewards

WORKED = "<think>\nHalf of 48 is 24, and 48 + 24 = 72.\n</think>\n<answer>\n{}\n</answer>"


def one(reward, completion, answer="72", **columns):
    return reward([completion], answer=[answer], prompts=["unused"], **{k: [v] for k, v in columns.items()})[0]


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        (WORKED.format("72"), "72", 1),
        (WORKED.format("71"), "72", 0),
        (WORKED.format(r"\boxed{72}"), "72", 1),
        (WORKED.format("$72"), "72", 1),
        (WORKED.format("72.00"), "72", 1),
        (WORKED.format("72 clips"), "72", 1),
        (WORKED.format("The answer is 72."), "72", 1),
        (WORKED.format("1,234,567"), "1234567", 1),
        (WORKED.format("1,23"), "123", 0),
        (WORKED.format("-3"), "-3", 1),
        (WORKED.format("−3"), "-3", 1),  # a typographic minus sign
        (WORKED.format("3"), "-3", 0),
        (WORKED.format(r"\frac{1}{3}"), r"\frac{1}{3}", 1),
        (WORKED.format("$\\frac{2}{6}$"), r"\frac{1}{3}", 1),
        (WORKED.format("1/3"), r"\frac{1}{3}", 1),
        (WORKED.format("0.333"), r"\frac{1}{3}", 0),
        (WORKED.format("(1, 2)"), "(1,2)", 1),
        (WORKED.format("$x^2+2x+1$"), "(x+1)^2", 1),
        (r"So the total is $\boxed{72}$.", "72", 1),
        ("So the total is 72.", "72", 0),  # no answer block, no LaTeX
        # no answer, several answers, or unusual text
        ("", "72", 0),
        ("<answer>", "72", 0),
        ("</answer>72<answer>", "72", 0),
        ("<answer></answer>", "72", 0),
        ("<answer>" * 500 + "72" + "</answer>" * 500, "72", 1),
        ("<answer>72</answer><answer>71</answer>", "72", 0),  # the last answer counts
        ("".join(f"<answer>{n}</answer>" for n in range(100)), "72", 0),
        (WORKED.format("9" * 10_000), "72", 0),
        (WORKED.format("0" * 500 + "72"), "72", 1),
        (WORKED.format("७२"), "72", 0),  # Devanagari digits
        (WORKED.format("日本 \U0001f600 \x00 \u202e72"), "73", 0),
        (WORKED.format("\\frac{" * 2000), "72", 0),
    ],
)
def test_accuracy(completion, gold, reward):
    assert one(rewards.accuracy, completion, gold) == reward


def test_strict_accuracy_needs_latex_and_reads_the_solution():
    assert one(rewards.strict_accuracy, WORKED.format("72")) == 0
    assert one(rewards.strict_accuracy, WORKED.format(r"\boxed{72}")) == 1
    assert one(rewards.strict_accuracy, r"\boxed{72}", "71", solution=r"... so it is $\boxed{72}$.") == 1


def test_a_row_without_a_readable_answer_gets_no_reward():
    assert one(rewards.accuracy, r"\boxed{5}", "") is None
    assert one(rewards.accuracy, r"\boxed{5}", "", solution="hence $5$") == 1
    assert one(rewards.strict_accuracy, r"\boxed{5}", "") is None


@pytest.mark.parametrize(
    ("text", "formatted", "tags"),
    [
        (WORKED.format("72"), 1, 1.0),
        ("<think>\n\n</think>\n<answer>\n\n</answer>", 1, 1.0),
        (WORKED.format("72") + "\n", 0, 1.0),  # something follows
        ("Sure! " + WORKED.format("72"), 0, 1.0),
        ("<think>a</think><answer>b</answer>", 0, 0.0),  # tags not on their own lines
        ("<think>\na\n</think>\n", 0, 0.5),
        ("<think>\n<think>\na\n</think>\n<answer>\nb\n</answer>", 0, 0.75),  # nested
        (WORKED.format("72") * 2, 0, 0.0),
        ("", 0, 0.0),
        ("<think>\n" * 10_000, 0, 0.0),
        ("<THINK>\na\n</THINK>\n<answer>\nb\n</answer>", 0, 0.5),
    ],
)
def test_format_and_tag_count(text, formatted, tags):
    assert one(rewards.format, text) == formatted
    assert one(rewards.tag_count, text) == tags


def test_nested_tags_are_not_the_format():
    assert one(rewards.format, WORKED.format("<answer>\n72\n</answer>")) == 0


def test_the_last_message_of_a_conversation_counts():
    chat = [{"role": "assistant", "content": WORKED.format("72")}]
    assert [one(reward, chat) for reward in rewards.REWARDS.values()] == [1, 0, 1, 1]
    assert one(rewards.tag_count, [{"role": "assistant", "content": None}]) == 0


def task(answer):
    return Task((r"\boxed{72}",), answer)


def test_a_comparison_that_takes_too_long_is_wrong():
    """In a thread, where math-verify's own timeout (an alarm signal) does not work. Later answers are graded."""
    grader = MathGrader(timeout=1.0, workers=1)
    grades = []

    def work():
        grades.extend(grader.grade([task("72"), task("9999999999!"), task("10^{10^{10^{10}}}"), task("2 \\cdot 36")]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    grader.close()
    assert grades == [1.0, 0.0, 0.0, 1.0]
    assert grader.counts.timed_out == 2


def test_workers_share_the_budget_of_a_step():
    grader = MathGrader(timeout=5.0, budget=4.0, workers=2)
    hostile = [task(f"10^{{10^{{10^{{{n}}}}}}}") for n in range(10, 40)]
    began = time.monotonic()
    assert grader.grade([task("72"), *hostile])[1:] == [0.0] * 30
    assert time.monotonic() - began < 30  # one after the other: 150
    assert grader.counts.skipped > 20
    assert grader.grade([task("72")]) == [1.0]
    grader.close()


def test_grades_after_an_interrupt_are_of_their_own_tasks(monkeypatch):
    grader = MathGrader(workers=1)
    assert grader.grade([task("72"), task("71")]) == [1.0, 0.0]
    original = Worker._exchange

    def interrupted(self, line, seconds):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grader.grade([task("72")])
    monkeypatch.setattr(Worker, "_exchange", original)
    assert grader.grade([task("71"), task("72"), task("73")]) == [0.0, 1.0, 0.0]
    grader.close()


def test_the_reply_of_another_task_is_refused(monkeypatch):
    worker = Worker()
    worker._process.stdin.write(json.dumps({"id": 99, "gold": ["72"], "answer": "72"}) + "\n")
    worker._process.stdin.flush()
    assert worker.ask(task("71"), 5.0) == (False, None, False)
    assert not worker.alive


def test_counts_are_logged():
    logged = {}
    rewards.accuracy([r"<answer>\frac{144}{2}</answer>"], answer=["72"], log_metric=logged.__setitem__)
    assert set(logged) == {"grader/graded", "grader/slow", "grader/timed_out", "grader/skipped"}
    assert logged["grader/graded"] >= 1


def test_rewards_are_resolved_by_name():
    assert rewards.resolve(["accuracy", "json.dumps"])[0] is rewards.accuracy
    with pytest.raises(UserError, match="did you mean accuracy"):
        rewards.resolve(["acuracy"])
    with pytest.raises(UserError, match="nowhere"):
        rewards.resolve(["nowhere.reward"])
    with pytest.raises(UserError, match="at least one"):
        rewards.resolve([])
