"""Openers in real trainers: sampled once, without a trace, read by a metric of their own, read back on resuming."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_trainers import TRAINERS, same_weights, save_tiny_model, sft_trainer, trained_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

import headwatch.monitor.probe_setup
from headwatch import HeadWatchCallback, Openers, ProbeSet, RunFolder, UserError, score_edges, score_heads
from headwatch.attribution.per_family import score_by_metric
from headwatch.attribution.settings import ScoringSettings
from headwatch.probes.opener_sampling import sample_continuations
from headwatch.record.packed_edges import ABSOLUTE, RELATIVE

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps({"problem": f"What is {i}+{i}?"}) + "\n" for i in range(12)))
    return str(path)


def callback(questions: str, families: Any = ("addition", "openers"), **options: Any) -> HeadWatchCallback:
    made_of = {"questions": questions, "system_prompt": "Think first.", "tokens": 8, **options.pop("openers", {})}
    watched = {"every": 2, "n_pairs": 8, "strict": True, "openers": Openers(**made_of)}
    return HeadWatchCallback(families, **{**watched, **options})


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(model: Path) -> tuple[Any, list[list[int]]]:
    """A model with likes and dislikes (an untrained one gives every token about the same logit), and prompts."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(3.0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return loaded, [tokenizer(text)["input_ids"] for text in ("12+30=", "a longer one: 7+8=", "x")]


def test_the_likeliest_tokens_are_what_the_model_generates(spoken: Any) -> None:
    loaded, prompts = spoken
    found = sample_continuations(loaded, prompts, ["a", "b", "c"], 7, top_p=1e-9)
    for prompt, ids in zip(prompts, found, strict=True):
        out = loaded.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=7, min_new_tokens=7)
        assert ids == out[0, len(prompt) :].tolist()


def test_draws_follow_the_models_probabilities(spoken: Any) -> None:
    """Of 4,000 draws of one token: the share of each is its tempered probability, cut at top_p."""
    loaded, prompts = spoken
    n, temperature, top_p = 4000, 1.5, 0.8
    drawn = sample_continuations(loaded, [prompts[0]] * n, [str(i) for i in range(n)], 1, temperature, top_p)
    with torch.no_grad():
        logits = loaded.eval()(torch.tensor([prompts[0]])).logits[0, -1].double()
    weights, tokens = (logits / temperature).softmax(-1).sort(descending=True)
    kept = int((weights.cumsum(-1) < top_p).sum()) + 1
    assert 3 < kept < 200
    expected = torch.zeros_like(weights)
    expected[tokens[:kept]] = weights[:kept] / weights[:kept].sum()
    shares = torch.bincount(torch.tensor(drawn)[:, 0], minlength=len(weights)) / n
    assert (shares[expected == 0] == 0).all()
    error = (expected * (1 - expected) / n).sqrt()
    assert ((shares - expected).abs() <= 5 * error).all()


def test_a_draw_depends_on_prompt_and_seed_alone(spoken: Any) -> None:
    loaded, prompts = spoken
    together = sample_continuations(loaded, prompts, ["a", "b", "c"], 6, temperature=1.0)
    alone = sample_continuations(loaded, prompts[1:2], ["b"], 6, temperature=1.0)
    assert together[1] == alone[0]
    assert together[1] != sample_continuations(loaded, prompts[1:2], ["z"], 6, temperature=1.0)[0]


def test_sampling_leaves_no_trace(spoken: Any) -> None:
    loaded, prompts = spoken
    loaded.train()
    settings = loaded.generation_config.to_dict()
    before = [p.detach().clone() for p in loaded.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    sample_continuations(loaded, prompts, ["a", "b", "c"], 3)
    assert all(module.training for module in loaded.modules())
    assert all(p.requires_grad and p.grad is None for p in loaded.parameters())
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), before, strict=True))
    assert loaded.generation_config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2][1])


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lora", "made_of"),
    [
        ("sft", True, {"metric": "nll"}),
        ("grpo", False, {}),
        pytest.param("sft", False, {"source": "fixed"}, marks=pytest.mark.slow),
        pytest.param("grpo", True, {"source": "fixed", "metric": "nll"}, marks=pytest.mark.slow),
    ],
    ids=["sft lora sampled nll", "grpo sampled kl", "sft fixed kl", "grpo lora fixed nll"],
)
def test_a_run_with_openers(
    kind: str, lora: bool, made_of: dict[str, Any], model: Path, questions: str, tmp_path: Path
) -> None:
    """Training is bit-identical, and the record holds what each family's own metric says of the set on disk."""
    plain = TRAINERS[kind](model, tmp_path / "plain", lora=lora)
    plain.train()
    watch = callback(questions, openers=made_of)
    trainer = TRAINERS[kind](model, tmp_path / "watched", [watch], lora=lora)
    trainer.train()
    assert same_weights(trained_weights(plain), trained_weights(trainer))

    run = RunFolder.open(tmp_path / "watched")
    metric = made_of.get("metric", "kl")
    assert run.manifest["settings"]["scoring"]["metric"] == {"addition": "logit_diff", "openers": metric}
    assert run.manifest["settings"]["openers"]["questions"] == ["questions.jsonl"]
    probes = ProbeSet.load(run.path / "probes.safetensors")
    assert probes.fingerprint == run.manifest["probes"]["fingerprint"]
    assert run.families == ("addition", "openers")

    scored = run.read_scores(run.steps[-1])  # of the weights that training ended with
    for index, (family, own) in enumerate({"addition": "logit_diff", "openers": metric}.items()):
        edges = score_edges(trainer.model, probes.select(family), metric=own)
        rows = run.pairs_of(family)
        scale = float(edges.heads.per_pair.abs().max())
        assert np.allclose(scored.head_scores[rows], edges.heads.per_pair.numpy(), atol=1e-5 * scale)
        assert np.allclose(scored.metric_corrupted[rows], edges.heads.readings.metric_corrupted.numpy(), rtol=1e-4)
        assert np.array_equal(scored.correct[rows], edges.heads.readings.correct.numpy())
        mean_abs = edges.mean_abs().numpy()
        packed = ABSOLUTE * float(mean_abs.max())  # smallest error of an entry on disk
        assert np.allclose(scored.edges_mean_abs[index], mean_abs, RELATIVE, 1e-5 * scale + packed)
    row = run.scalars()[-1]
    assert row["openers/kl_from_base"] > 0
    assert row["row_sum_error"] < 1e-4
    assert row["completeness_error"] < 1


def test_the_base_samples_and_not_a_trained_model(model: Path, questions: str, tmp_path: Path) -> None:
    """The set is what the model on disk says to the training's own questions, whatever training does later."""
    sft_trainer(model, tmp_path, [callback(questions, "openers", scoring={"edges": False})], lora=True).train()
    base, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    openers = Openers(questions, system_prompt="Think first.", tokens=8)

    def sample(prompts: Any, seeds: Any, n: int) -> list[list[int]]:
        return sample_continuations(base, prompts, seeds, n)

    expected = openers.make(tokenizer, 8, 0, sample)
    assert ProbeSet.load(tmp_path / "headwatch" / "probes.safetensors").fingerprint == expected.fingerprint


def test_one_metric_for_all_is_one_pass(model: Path, questions: str) -> None:
    """The joined scores are the plain pass's where all families share a metric, and errors are the worst of all."""
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    given = Openers(questions, source="fixed", tokens=8).make(tokenizer, 4)
    probes = ProbeSet.resolve(["addition", "openers", "recall"], tokenizer, 4, openers=given)
    seen: list[int] = []
    metrics = {"addition": "nll", "openers": "kl", "recall": "nll"}
    heads_only = ScoringSettings(edges=False)
    merged = score_by_metric(
        loaded, probes, metrics, heads_only, observe=lambda pairs, logits, reads: seen.extend(pairs.tolist())
    )
    assert sorted(seen) == list(range(12))
    assert merged.families == probes.families
    assert merged.metric == "nll, kl"
    parts = {f: score_heads(loaded, probes.select(f), m) for f, m in [("addition", "nll"), ("openers", "kl")]}
    for family, part in parts.items():
        assert torch.allclose(merged.select(family).per_pair, part.per_pair, atol=1e-6)
        assert torch.allclose(merged.select(family).input, part.input, atol=1e-6)
    assert merged.checks.completeness >= parts["openers"].checks.completeness - 1e-6
    plain = score_heads(loaded, probes, "kl")
    same = score_by_metric(loaded, probes, dict.fromkeys(probes.family_names, "kl"), heads_only)
    assert torch.equal(plain.per_pair, same.per_pair)
    assert same.metric == "kl"


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_reads_the_frozen_set_and_does_not_sample(
    model: Path, questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(Path(questions).read_text())
    whole = sft_trainer(model, tmp_path / "whole", [callback(str(path))], max_steps=6, **CONSTANT)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    sft_trainer(model, tmp_path / "cut", [callback(str(path))], max_steps=4, **saving, **CONSTANT).train()
    path.unlink()  # nobody asks for the questions again
    monkeypatch.setattr(headwatch.monitor.probe_setup, "sample_continuations", None)

    def resume(**options: Any) -> None:
        again = sft_trainer(model, tmp_path / "cut", [callback(str(path), **options)], max_steps=6, **CONSTANT)
        again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))

    for options, words in [
        ({"openers": {"tokens": 9}}, "openers={'tokens': 9}: .* with openers={'tokens': 8}"),
        ({"openers": {"metric": "nll"}}, "metric={'openers': 'nll'}"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            resume(**options)
        assert "\n" not in str(caught.value)
    resume()
    run, expected = RunFolder.open(tmp_path / "cut"), RunFolder.open(tmp_path / "whole")
    assert run.steps == expected.steps == [0, 2, 4, 6]
    assert run.manifest["probes"] == expected.manifest["probes"]
    for step in run.steps:
        assert np.array_equal(run.read_scores(step).head_scores, expected.read_scores(step).head_scores)
        assert np.array_equal(run.read_scores(step).kl_from_base, expected.read_scores(step).kl_from_base)


def test_what_cannot_work_is_refused_before_the_first_step(model: Path, questions: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='alphas="clean" with metric="kl"'):
        callback(questions, scoring={"alphas": "clean"})
    trainer = sft_trainer(model, tmp_path, [callback("nowhere.jsonl", strict=False)])
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        trainer.train()
    assert trainer.state.global_step == 0


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_have_one_frozen_set(model: Path, questions: str, tmp_path: Path) -> None:
    made_of = {"questions": questions, "system_prompt": "Think first.", "tokens": 8}
    saving = {"save_strategy": "steps", "save_steps": 3, **CONSTANT}
    runs = {
        "plain": {"openers": None, "changes": {"max_steps": 5, **CONSTANT}},
        "whole": {"openers": dict(made_of), "only_here": True, "changes": {"max_steps": 5, **CONSTANT}},
        "cut": {"openers": dict(made_of), "changes": {"max_steps": 4, **saving}},
    }
    again = {
        "openers": {**made_of},
        "changes": {"max_steps": 5, **CONSTANT},
        "resume": str(tmp_path / "cut" / "checkpoint-3"),
    }
    here = Path(__file__).parents[1] / "helpers"
    paths = os.pathsep.join([str(here.parent), str(here.parent.parent)])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for part in (runs, {"cut": again}):
        order = tmp_path / "order.json"
        order.write_text(json.dumps({"model": str(model), "runs": part}))
        done = subprocess.run(
            [*torchrun, str(here / "openers_on_ranks.py"), str(order)],
            capture_output=True,
            text=True,
            timeout=280,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    run, resumed = RunFolder.open(tmp_path / "whole"), RunFolder.open(tmp_path / "cut")
    fingerprint = run.manifest["probes"]["fingerprint"]
    for name in ("whole", "cut"):
        assert [(tmp_path / f"{name}-{rank}.txt").read_text() for rank in (0, 1)] == [fingerprint] * 2
    for rank in (0, 1):
        weights = [torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("plain", "whole", "cut")]
        assert same_weights(weights[0], weights[1])
        assert same_weights(weights[0], weights[2])
    assert run.steps == resumed.steps == [0, 2, 4, 5]
    probes = ProbeSet.load(run.path / "probes.safetensors")
    base = AutoModelForCausalLM.from_pretrained(model)
    merged = score_by_metric(base, probes, {"addition": "logit_diff", "openers": "kl"}, ScoringSettings())
    scale = float(merged.heads.per_pair.abs().max())
    assert np.allclose(run.read_scores(0).head_scores, merged.heads.per_pair.numpy(), atol=1e-5 * scale)
    assert run.scalars()[0]["completeness_error"] == pytest.approx(merged.checks.completeness, rel=1e-2)
    for step in run.steps:
        assert np.array_equal(run.read_scores(step).head_scores, resumed.read_scores(step).head_scores)
