"""`headwatch evaluate` and `headwatch ablate` on a model that solves six of eight problems."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from helpers.plain_run import write_plain_run
from helpers.wandb_files import offline_runs
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch.analysis.interventions import write_scaled_heads
from headwatch.cli import main
from headwatch.commands.ablate import WHICH as GROUPS
from headwatch.commands.sampling_options import SUITES as NAMES
from headwatch.evaluation.benchmarks import SUITES, load_problems
from headwatch.evaluation.head_groups import WHICH
from headwatch.evaluation.hf_engine import HfEngine
from headwatch.evaluation.sampling import SamplingSettings, batches
from headwatch.record.after import read_results

SHORT = ["--instruction", "", "--max-tokens", "10", "--device", "cpu"]


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_model_that_solves_six_of_eight(
    solver: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(solver), "--suite", str(problems), *SHORT, "--out", str(tmp_path), "--json"]
    assert main([*command, "--samples", "2"]) == 0
    found = output(capsys)["suites"]["sums"]
    assert found["pass"]["1"]["value"] == found["success"]["2"]["value"] == 0.75
    assert 0 < found["pass"]["1"]["low"] < 0.75 < found["pass"]["1"]["high"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "sums" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert {row["problem"] for row in rows if not row["correct"]} == {6, 7}
    assert rows[0]["text"].startswith("\\boxed{")
    assert rows[0]["finished"]

    (tmp_path / "sums" / "samples.jsonl").write_bytes(b"")  # not sampled again unless it is missing
    assert main([*command, "--samples", "2"]) == 0
    assert output(capsys)["suites"]["sums"] == found
    assert main([*command, "--samples", "3"]) == 2
    assert "samples=2, and now it is 3: give another --out" in capsys.readouterr().err
    trained = tmp_path / "trained"
    shutil.copytree(solver, trained / solver.name)
    moved = ["evaluate", str(trained / solver.name), *command[2:], "--samples", "2"]
    assert main(moved) == 0  # a copy of the same weights
    assert output(capsys)["suites"]["sums"] == found
    model = AutoModelForCausalLM.from_pretrained(solver)
    write_scaled_heads(model, {(0, 0): 0.5})
    model.save_pretrained(trained / solver.name)
    assert main(moved) == 2
    assert "holds answers with weights=" in capsys.readouterr().err


def test_draws_depend_on_problem_and_sample_alone(solver: Path, problems: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(solver).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(solver)
    model.generation_config.repetition_penalty = 5.0  # the checkpoint's own settings are not used
    chosen = load_problems(str(problems))
    found = []
    for size, subset in ((1, chosen), (5, chosen), (3, chosen[::2])):
        settings = SamplingSettings(samples=3, temperature=30.0, max_tokens=6, batch_size=size, instruction="")
        engine = HfEngine(model, tokenizer, settings)
        answers = {}
        for batch in batches(subset, tokenizer, settings):
            for request, completion in zip(batch, engine.sample(batch), strict=True):
                answers[request.problem, request.sample] = completion
        found.append(answers)
    assert found[0] == found[1]
    assert all(found[0][key] == value for key, value in found[2].items())
    assert len({completion.text for completion in found[0].values()}) > 12  # at this temperature, all different
    assert model.generation_config.repetition_penalty == 5.0


def test_greedy_answers_are_those_of_generate(solver: Path, problems: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(solver).eval()
    tokenizer = AutoTokenizer.from_pretrained(solver)
    settings = SamplingSettings(samples=1, temperature=0.0, max_tokens=8, batch_size=1, instruction="")
    engine = HfEngine(model, tokenizer, settings)
    for (request,) in batches(load_problems(str(problems)), tokenizer, settings):
        out = model.generate(torch.tensor([request.ids]), max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(out[0, len(request.ids) :], skip_special_tokens=True)
        assert engine.sample([request])[0].text == text


def test_heads_off_by_hook_and_in_the_weights_give_the_same_answers(solver: Path, problems: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(solver)
    settings = SamplingSettings(samples=2, max_tokens=8, batch_size=4, instruction="")
    heads = {(0, 1): 0.0, (1, 2): 1.3}
    plain, written = (AutoModelForCausalLM.from_pretrained(solver).double().eval() for _ in range(2))
    write_scaled_heads(written, heads)
    hooked, weighted = HfEngine(plain, tokenizer, settings, heads), HfEngine(written, tokenizer, settings)
    untouched = HfEngine(plain, tokenizer, settings)
    different = 0
    for batch in batches(load_problems(str(problems)), tokenizer, settings):
        assert hooked.sample(batch) == weighted.sample(batch)
        different += hooked.sample(batch) != untouched.sample(batch)
    assert different


def test_ablation_against_random_heads(
    solver: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = " ".join(f"L0H{head}" for head in range(3))
    command = ["ablate", str(solver), "--heads", every, "--random", "0", "--suite", str(problems)]
    command += ["--samples", "1", "--temperature", "0", *SHORT]  # one answer: a problem is right or wrong, not half
    assert main([*command, "--factor", "0", "1", "--out", str(tmp_path), "--json"]) == 0
    none, off, one = output(capsys)["suites"]["sums"]["arms"]
    assert none["pass1"]["value"] == 0.75
    assert one["against_none"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # factor 1 changes nothing
    assert off["heads"] == ["L0.H0", "L0.H1", "L0.H2"]
    change = off["against_none"]
    assert change["difference"]["value"] == off["pass1"]["value"] - 0.75 < 0
    assert set(change["newly_wrong"]) <= set(range(6))
    assert len(change["newly_wrong"]) - len(change["newly_right"]) == round(-8 * change["difference"]["value"])

    command = ["ablate", str(solver), "--heads", "L0H0,L1H0", "--random", "5", "--suite", str(problems)]
    command += ["--samples", "1", "--temperature", "0", *SHORT, "--out", str(tmp_path / "random")]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "the given heads off against 5 random sets" in text
    arms_ = json.loads((tmp_path / "random" / "ablation.json").read_text())["suites"]["sums"]["arms"]
    assert [row["arm"] for row in arms_] == ["none", "heads-x0", *(f"heads-x0-random{n}" for n in range(1, 6))]
    shown = {line[:28].rstrip(): line[28:].split() for line in text.splitlines()[2:5]}
    assert list(shown) == ["nothing off", "the given heads off", "random heads off (5 sets)"]
    for cells, rows in zip(shown.values(), (arms_[:1], arms_[1:2], arms_[2:]), strict=True):
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in ("tokens", "unfinished")}
        right = sum(row["pass1"]["value"] for row in rows) / len(rows)
        heads = len(rows[0]["heads"])
        assert cells[:4] == [
            *(str(heads), f"{mean['tokens']:.0f}", f"{100 * mean['unfinished']:.1f}", f"{100 * right:.1f}")
        ]
    page = (tmp_path / "random" / "ablation.html").read_text()
    assert page.count("<circle") == 7  # none, the heads, five random sets
    result = json.loads((tmp_path / "random" / "ablation.json").read_text())["suites"]["sums"]
    arms = {row["arm"]: row["pass1"]["value"] for row in result["arms"]}
    sets = [value for name, value in arms.items() if "random" in name]
    assert len(sets) == 5
    against = result["against_random"][0]
    assert against["random_mean"]["value"] == pytest.approx(sum(sets) / 5)
    assert against["difference"]["value"] == pytest.approx(arms["heads-x0"] - sum(sets) / 5)


def test_a_benchmark_of_which_nothing_is_solved_is_reported(
    solver: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", str(solver), "--heads", "L0H0", "--random", "1", "--suite", str(problems), "--samples", "1"]
    cut = ["--instruction", "", "--max-tokens", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*command, *cut]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("headwatch: ")]
    assert lines == [
        "headwatch: sums: with nothing off the model solves no problem (100 % of the answers were cut: raise "
        "--max-tokens), so heads that are off cannot cost anything"
    ]


def test_results_are_kept_in_a_run(solver: Path, problems: Path, tmp_path: Path) -> None:
    run = write_plain_run(tmp_path / "run", [0], layers=2, heads=4)
    shared = ["--suite", str(problems), "--samples", "1", *SHORT, "--run", str(tmp_path / "run")]
    assert main(["evaluate", str(solver), *shared, "--out", str(tmp_path / "out")]) == 0
    (found,) = read_results(run, "evaluation")
    assert found["suites"]["sums"] == json.loads((tmp_path / "out" / "sums" / "result.json").read_text())
    which = ["--which", "active", "--top", "1", "--random", "1"]
    assert main(["ablate", str(solver), *shared, *which, "--out", str(tmp_path / "off")]) == 0
    (found,) = read_results(run, "ablation")
    assert found == json.loads((tmp_path / "off" / "ablation.json").read_text())


def test_a_task_of_the_harness(solver: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arms are compared document by document; kept results are not computed again."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    rows = [{"q": f"{a}+{b}=", "a": (a + b) % 2} for a in range(10, 14) for b in range(20, 23)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        **{"task": "parity", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "rows.jsonl")}},
        **{"output_type": "multiple_choice", "test_split": "train", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"},
        **{"doc_to_choice": ["30", "31"], "metric_list": [{"metric": "acc"}]},
    }
    task = tmp_path / "parity.yaml"
    task.write_text(yaml.safe_dump(settings))
    command = ["ablate", str(solver), "--suite", f"lm_eval:{task}", "--heads", "L0H0", "L1H1", "--random", "2", *SHORT]
    assert main([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = output(capsys)
    arms = {row["arm"]: row for row in result["suites"]["lm_eval:parity acc"]["arms"]}
    numbers = result["harness"][f"lm_eval:{task}"]
    assert len(arms) == len(numbers) == 4
    assert {arm: row["pass1"]["value"] for arm, row in arms.items()} == pytest.approx(
        {arm: row["parity"]["acc,none"] for arm, row in numbers.items()}
    )
    model = AutoModelForCausalLM.from_pretrained(solver)
    write_scaled_heads(model, {(0, 0): 0.0, (1, 1): 0.0})
    wrapped = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(solver), batch_size=1)
    found = simple_evaluate(model=wrapped, tasks=[str(task)], bootstrap_iters=0)["results"]["parity"]["acc,none"]
    assert arms["heads-x0"]["pass1"]["value"] == pytest.approx(found)
    page = (tmp_path / "out" / "ablation.html").read_text()
    assert "lm_eval:parity acc" in page

    kept = tmp_path / "out" / "lm_eval" / "parity" / "none" / "harness.json"
    changed = json.loads(kept.read_text())
    changed["documents"]["parity acc"] = dict.fromkeys(changed["documents"]["parity acc"], 1.0)
    kept.write_text(json.dumps(changed))
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "100.0 [100.0, 100.0]" in capsys.readouterr().out


def test_results_in_an_offline_wandb_run(
    solver: Path, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.teardown()  # wandb reads its environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    command = ["ablate", str(solver), "--heads", "L0H0", "--random", "1", "--suite", str(problems), "--samples", "1"]
    assert main([*command, *SHORT, "--out", str(tmp_path / "out"), "--report-to", "wandb"]) == 0
    (run,) = offline_runs(tmp_path)
    result = json.loads((tmp_path / "out" / "ablation.json").read_text())["suites"]["sums"]
    for row in result["arms"]:
        assert run.summary[f"headwatch/ablate/sums/{row['arm']}"] == row["pass1"]["value"]
    assert len(run.media()) == 1  # the table of the arms


def test_the_plan_loads_nothing(
    problems: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = ["Org/Model", "--suite", "aime24", str(problems), "--samples", "16", "--dry-run", "--json"]
    assert main(["evaluate", *command]) == 0
    plan = output(capsys)["plan"]
    assert [row["answers"] for row in plan] == [30 * 16, 8 * 16]
    assert plan[0]["most_tokens"] == 30 * 16 * 32768
    assert main(["ablate", *command, "--heads", "L3.H1", "--factor", "0", "0.5"]) == 0
    assert [row["arms"] for row in output(capsys)["plan"]] == [13, 13]


def test_one_line_for_a_mistake(
    solver: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"problem": "1+1="}\n')
    suite = ["--suite", str(problems)]
    for arguments, line in (
        (["evaluate", str(solver), "--suite", "aime42"], "did you mean aime2"),
        (["evaluate", str(solver), "--suite", str(tmp_path / "no.jsonl")], "no such file"),
        (["evaluate", str(solver), "--suite", str(bad)], "row 1 has no answer"),
        (["evaluate", str(solver), "--suite", "lm_eval:no_such"], "lm-evaluation-harness"),
        (["evaluate", str(solver), *suite, "--think", "on"], "has no enable_thinking"),
        (["evaluate", str(solver), *suite, "--engine", "vllm"], "vLLM is not installed"),
        (["evaluate", str(solver), *suite, "--top-p", "2"], "--top-p: 2 must be a number above 0 and at most 1"),
        (["evaluate", str(solver), "--suite", "gsm8k"], "could not be loaded from the Hub"),
        (["ablate", str(solver), *suite, "--heads", "L99H0"], "the model has no head L99H0"),
        (["ablate", str(solver), *suite, "--heads", "x"], "'x' is not a head"),
        (["ablate", str(solver), *suite], "no heads: give --heads"),
        (["ablate", str(solver), *suite, "--heads", "L0H0", "--factor", "nan"], "nan must be a finite number"),
        (["ablate", str(solver), *suite, "--heads", "L0H0", "--random", "-1"], "-1 must be a whole number of"),
        (["ablate", str(solver), *suite, "--circuit", "none.json"], "none.json: there is no such file"),
        (["ablate", str(solver), *suite, "--heads", "L0H0", "L0H1", "L0H2", "L0H3", "L1H0"], "too many to match"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        error = capsys.readouterr().err.strip().splitlines()
        assert line in error[-1], error
        assert error[-1].startswith("headwatch: ")


def test_the_commands_names_are_all() -> None:
    assert tuple(SUITES) == NAMES
    assert tuple(WHICH) == GROUPS
