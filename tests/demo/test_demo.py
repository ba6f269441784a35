"""The demo: its task and rewards, its tokenizer, pretraining and post-training, and repeatability."""

import os
import re

import numpy as np
import pytest
import torch
from helpers.after_results import interval
from helpers.wandb_files import offline_runs

pytest.importorskip("trl")

from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch.demo.ending import EndPlan, _heads_off, ablation_line
from headwatch.demo.post_training import GrpoStage, SftStage, train_grpo, train_sft
from headwatch.demo.pretraining import BaseStage, accuracy, pretrain, text_batch
from headwatch.demo.quiet import environment
from headwatch.demo.run import QUICK, run_demo
from headwatch.demo.sums import Sum, boxed_number, closed_box, exact_answer, sample_sums
from headwatch.demo.tiny_model import WORDS, ModelSize, build_model, build_tokenizer, save
from headwatch.errors import UserError
from headwatch.probes import ProbeSet
from headwatch.record.after import read_results
from headwatch.record.run_folder import RunFolder

SMALL = ModelSize(n_layers=2, n_heads=4, d_model=32, d_mlp=64)
ALL_SUMS = [Sum(a, b) for a in range(10, 100) for b in range(10, 100)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    model = build_model(tokenizer, SMALL)
    pretrain(model, tokenizer, BaseStage(steps=10, careless_share=0.0))
    return save(model, tokenizer, tmp_path_factory.mktemp("base"))


# --- the task ---------------------------------------------------------------------------------------------------------


def test_every_line_of_a_worked_solution_is_right():
    for problem in ALL_SUMS:
        steps, box = problem.worked.split(".", 1)
        *_, last = lines = [line.strip().split("=") for line in steps.split(",")]
        assert all(sum(map(int, left.split("+"))) == int(total) for left, total in lines)
        ones = int(lines[0][1])
        assert len(last[0].split("+")) == (3 if ones >= 10 else 2), "the carry is written"
        assert 10 * int(last[1]) + ones % 10 == problem.a + problem.b == boxed_number(box)


def test_careless_texts_omit_the_carry_only():
    for problem in ALL_SUMS:
        careless = Sum(problem.a, problem.b, careless=True)
        assert int(problem.answer) - int(careless.answer) == (10 if problem.a % 10 + problem.b % 10 >= 10 else 0)
        assert (careless.worked == problem.worked) == (not problem.carries)
        assert boxed_number(careless.worked) == int(careless.answer) == boxed_number(careless.direct)
        assert careless.prompt == problem.prompt


def test_prompts_equal_those_of_the_probes(tokenizer):
    for family in ("addition", "carry"):
        for clean, corrupted in ProbeSet.generate(family, tokenizer, n_pairs=16, seed=3).texts:
            for text in (clean, corrupted):
                a, b = map(int, re.findall(r"\d+", text)[:2])
                assert text.startswith(Sum(a, b).prompt)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("132}", 132),  # the prompt opened the box
        (" 7+5=12, 4+8+1=13. Answer: \\boxed{132}", 132),
        ("12} \\boxed{ 132 }", 132),  # the last box counts
        ("132", None),  # never closed
        ("Answer: 132}", None),  # never opened
        ("", None),
    ],
)
def test_boxed_number(completion, expected):
    assert boxed_number(completion) == expected


def test_exact_answer_rewards_the_right_sum_only():
    problems = [Sum(47, 85)] * 4
    completions = ["132}", "122}", "132", "Answer: \\boxed{132}"]
    assert exact_answer(completions, answer=[p.answer for p in problems], prompts=["unused"]) == [1.0, 0.0, 0.0, 1.0]


def test_closed_box_rewards_any_number():
    assert closed_box(["132}", "1}", "132", "132}}", "x 132}", ""]) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_sample_sums_follows_the_shares_and_the_seed():
    drawn = sample_sums(np.random.default_rng(0), 2000, carry_share=0.3, careless_share=0.8)
    assert drawn == sample_sums(np.random.default_rng(0), 2000, carry_share=0.3, careless_share=0.8)
    assert drawn != sample_sums(np.random.default_rng(1), 2000, carry_share=0.3, careless_share=0.8)
    assert all(10 <= n <= 99 for p in drawn for n in (p.a, p.b))
    # 2000 draws: four standard deviations are 0.041 and 0.036
    assert np.mean([p.carries for p in drawn]) == pytest.approx(0.3, abs=0.041)
    assert np.mean([p.careless for p in drawn]) == pytest.approx(0.8, abs=0.036)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [ALL_SUMS[0].worked, "Table: K = 7; T = 30. \\boxed{", "Café Ω\n\n\ttwo  spaces", "日本"]
)
def test_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_and_listed_words_are_single_tokens(tokenizer):
    assert tokenizer.tokenize("1234567890") == list("1234567890")
    assert [len(tokenizer.tokenize(word)) for word in WORDS] == [1] * len(WORDS)


def test_the_saved_tokenizer_is_equal(tokenizer, base):
    again = AutoTokenizer.from_pretrained(base)
    for text in (Sum(47, 85).question + Sum(47, 85).worked, "The value of K is \\boxed{", "Café"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    turn = [{"role": "user", "content": "Compute 1+2."}]
    assert again.apply_chat_template(turn, tokenize=False) == "<|im_start|>user\nCompute 1+2.<|im_end|>\n"


@pytest.mark.parametrize("family", ["addition", "carry", "recall", "word_problem", "linear_equation"])
def test_no_probe_pair_is_rejected(tokenizer, family):
    probes = ProbeSet.generate(family, tokenizer, n_pairs=64, seed=0)
    assert (len(probes), probes.rejected) == (64, ())


def test_prompt_and_completion_join_on_a_token_boundary(tokenizer):
    for problem in ALL_SUMS[::97]:
        for prompt, completion in [
            (problem.question, problem.worked),
            (problem.question, problem.direct),
            (problem.prompt, f"{problem.answer}}}"),
        ]:
            apart = tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"]
            assert tokenizer(prompt + completion)["input_ids"] == apart


# --- training ---------------------------------------------------------------------------------------------------------


def test_text_batch(tokenizer):
    problems = [Sum(11, 12), Sum(90, 85)]
    ids, targets = text_batch(tokenizer, [p.prompt for p in problems], [f"{p.answer}}}" for p in problems])
    assert ids.shape[0] == targets.shape[0] == 2
    for row, target, problem in zip(ids, targets, problems, strict=True):
        kept = target[target != -100]
        assert tokenizer.decode(kept) == f"{problem.answer}}}<|im_end|>"
        assert tokenizer.decode(row, skip_special_tokens=True) == f"{problem.prompt}{problem.answer}}}"
        assert torch.equal(row[-len(target) :][target != -100], kept)  # targets are the last columns of ids


def test_accuracy_agrees_with_generation(tokenizer, base):
    """Teacher forcing and greedy generation agree on which answers are right."""
    model = AutoModelForCausalLM.from_pretrained(base)
    pretrain(model, tokenizer, BaseStage(steps=40, learning_rate=1e-2, warmup_steps=10, careless_share=0.0))
    problems = ALL_SUMS[5::203]
    inputs = tokenizer([p.prompt for p in problems], return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    generated = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [text == f"{p.answer}}}" for text, p in zip(generated, problems, strict=True)]
    assert accuracy(model, tokenizer, problems)[0] == pytest.approx(np.mean(right))


def test_pretraining_learns_and_is_repeatable(tokenizer):
    losses, weights = [], []
    for _ in range(2):
        model = build_model(tokenizer, SMALL, seed=4)
        losses.append(pretrain(model, tokenizer, BaseStage(steps=40, learning_rate=1e-2, warmup_steps=10, seed=4)))
        weights.append(model.state_dict())
    assert losses[0] == losses[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert np.mean(losses[0][-5:]) < 0.6 * np.mean(losses[0][:5])
    other = build_model(tokenizer, SMALL, seed=5).state_dict()
    assert not all(torch.equal(weights[0][name], other[name]) for name in other)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_post_training_is_repeatable(base, tmp_path, method):
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    runs = []
    for attempt in range(2):
        torch.manual_seed(attempt)  # the global seed must not matter
        if method == "sft":
            trainer = train_sft(base, tmp_path / str(attempt), SftStage(steps=4, batch_size=4), seed=3)
        else:
            stage = GrpoStage(steps=4, prompts_per_step=2, num_generations=4)
            trainer = train_grpo(base, tmp_path / str(attempt), stage, rewards=[shortness], seed=3)
        runs.append((trainer.model.state_dict(), [row.get("loss") for row in trainer.state.log_history]))
    (first, first_losses), (second, second_losses) = runs
    assert first_losses == second_losses
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], before[name]) for name in first)


def shortness(completions, **_):
    """A reward that differs between completions even if every sum is wrong, so that GRPO has a gradient."""
    return [-float(len(text)) for text in completions]


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_is_repeatable(tmp_path):
    said = {"one": [], "two": []}
    reports = [
        run_demo(tmp_path / name, seed=2, quick=True, wandb=name == "one", say=said[name].append) for name in said
    ]
    assert said["one"] == said["two"]
    assert reports == [tmp_path / "one" / "report.html", tmp_path / "two" / "report.html"]
    for method, key in (("sft", "loss"), ("grpo", "reward")):
        one, two = (RunFolder.open(tmp_path / name / method) for name in ("one", "two"))
        stage = getattr(QUICK, method)
        assert one.steps == two.steps == [0, 2, 4, 6]
        assert one.manifest["status"] == "finished"
        assert one.manifest["probes"]["fingerprint"] == two.manifest["probes"]["fingerprint"]
        logged = [[row[key] for row in run.training() if key in row] for run in (one, two)]
        assert len(logged[0]) == stage.steps
        assert logged[0] == logged[1]
        for step in one.steps:
            assert np.array_equal(one.read_scores(step).head_scores, two.read_scores(step).head_scores)
        assert not np.array_equal(one.read_scores(0).head_scores, one.read_scores(6).head_scores)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "one" / method).num_parameters() > 0
    both = [RunFolder.open(tmp_path / "one" / method).read_scores(0).head_scores for method in ("sft", "grpo")]
    assert np.array_equal(*both), "both runs start from the same base model and probes"
    logged_runs = offline_runs(tmp_path / "one")
    assert len(logged_runs) == 2
    for run in logged_runs:
        assert len(run.visible("headwatch/")) == 26  # the end of the demo adds no panel
        hidden = [key for key, is_hidden in run.hidden.items() if is_hidden]
        assert {"headwatch/circuit/carry/curve", "headwatch/roles/heads"} <= set(hidden)
    for method in ("sft", "grpo"):
        base, trained = read_results(RunFolder.open(tmp_path / "one" / method), "circuits")
        assert (base["model"], trained["model"]) == ("base", f"demo-{method}")
        for family in trained["families"]:
            # The gap of this untrained model is 3e-4, and its float32 logits of about 3 are rounded to 2e-7.
            assert family["curve"][-1]["faithfulness"] == pytest.approx(1.0, abs=4e-3)
            start = f"{method.upper()}: circuit of {family['family']}: {family['edges']} of"
            assert any(line.startswith(start) for line in said["one"])
            summaries = [run.summary[f"headwatch/circuit/{family['family']}/cpr"] for run in logged_runs]
            assert family["cpr"] in summaries
        (roles,) = read_results(RunFolder.open(tmp_path / "one" / method), "roles")
        assert any(row["weight_change"] > 0.0 for row in roles["heads"])
    assert not (tmp_path / "two" / "wandb").exists()
    assert "WANDB_MODE" not in os.environ or os.environ["WANDB_MODE"] != "offline"


def test_the_line_of_heads_off_has_its_numbers_and_a_verdict():
    arms = [{"pass1": interval(0.9)}, {"pass1": interval(0.6), "problems": 1000}]
    arms[1]["against_none"] = {"difference": interval(-0.3)}
    other = {"sets": 19, "random_mean": interval(0.8), "random_lowest": 0.5, "random_highest": 0.9, "rank_p": 0.05}
    found = {"arms": arms, "against_random": [{**other, "difference": interval(-0.2)}]}
    line = ablation_line(found, ["L1.H2", "L2.H3"])
    assert "without the 2 emerged heads (L1.H2, L2.H3) the accuracy on 1,000 sums is 60.0 % instead of 90.0 %" in line
    assert line.endswith("They matter more than random heads: no random set costs as much (rank p 0.05).")


def test_heads_off_are_measured_on_the_same_sums(tokenizer, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    pretrain(model, tokenizer, BaseStage(steps=60, learning_rate=1e-2, warmup_steps=10, careless_share=0.0))
    plan = EndPlan(sums=60, random_sets=4)
    suites, line = _heads_off(model, tokenizer, [(0, 1), (1, 2)], plan, seed=0)
    none, off, *random = suites["two-digit sums"]["arms"]
    drawn = np.random.default_rng([0, 3]).permutation(len(ALL_SUMS))[:60]
    assert none["pass1"]["value"] == pytest.approx(accuracy(model, tokenizer, [ALL_SUMS[i] for i in drawn])[0])
    assert set(off["against_none"]["newly_wrong"]) <= set(drawn.tolist())
    assert len({frozenset(arm["heads"]) for arm in random}) == len(random) > 1
    assert all({head.split(".")[0] for head in arm["heads"]} == {"L0", "L1"} for arm in random)
    assert "2 emerged heads (L0.H1, L1.H2)" in line
    assert _heads_off(model, tokenizer, [], plan, 0)[0] is None
    suites, line = _heads_off(model, tokenizer, [(0, head) for head in range(4)] + [(1, 0)], plan, 0)
    assert suites is None
    assert "too many" in line


def test_the_folder_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        run_demo(tmp_path / "taken", quick=True)


def test_environment_is_restored(monkeypatch):
    monkeypatch.setenv("HEADWATCH_TEST_A", "before")
    monkeypatch.delenv("HEADWATCH_TEST_B", raising=False)
    with environment(HEADWATCH_TEST_A="1", HEADWATCH_TEST_B="2"):
        assert (os.environ["HEADWATCH_TEST_A"], os.environ["HEADWATCH_TEST_B"]) == ("1", "2")
    assert os.environ["HEADWATCH_TEST_A"] == "before"
    assert "HEADWATCH_TEST_B" not in os.environ
