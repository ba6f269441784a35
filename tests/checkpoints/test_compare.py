"""`headwatch compare`: heads of trained models against their base, thinking on against off, openers of two models."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_trainers import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from headwatch import Circuit, HeadHistory, ProbeSet, RunFolder, effect, score_edges
from headwatch.checkpoints.comparison import component_importance
from headwatch.cli import main
from headwatch.monitor.family_choice import choose_families
from headwatch.probes.thinking import in_chat
from headwatch.stats import EvidenceSettings

OPTIONS = ["--probes", "addition", "--pairs", "16", "--device", "cpu", "--json"]


def compared(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main(["compare", *arguments, *OPTIONS]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_comparison_is_that_of_the_scores_of_both_models(
    base_and_post: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, post = base_and_post
    command = [str(base), str(post), "--top-n", "40", "--out", str(tmp_path)]
    found = compared(command, capsys)["comparisons"]["post"]["addition"]
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (base, post)]
    probes = ProbeSet.generate("addition", AutoTokenizer.from_pretrained(base), n_pairs=16)
    edges = [score_edges(model, probes) for model in models]
    history = HeadHistory(2, 4, settings=EvidenceSettings(confirm="none"))
    for step, one in enumerate(edges):
        scores = one.head_scores()
        history.add(step, one.heads.per_pair, scores.readings.metric_clean, scores.readings.metric_corrupted)
    assert found["signal"] == "ok"
    events = {(f"L{e.layer}.H{e.head}", e.kind): e for e in history.events}
    assert {kind for _, kind in events} == {"emerged", "dropped"}  # else nothing is compared below
    for layer, head in ((e.layer, e.head) for e in history.events if e.kind == "emerged"):
        assert history.share[1, layer, head] == pytest.approx(history.share[0, layer, 3 - head], rel=1e-3)
    for kind in ("emerged", "dropped"):
        rows = found["evidence"]["heads"][kind]
        assert {(row["head"], kind) for row in rows} == {key for key in events if key[1] == kind}
        for row in rows:
            event = events[row["head"], kind]
            assert row["p_value"] == event.p_value
            assert row["q_value"] == event.q_value <= 0.01
            assert (row["share_before"], row["share_now"]) == (event.share_before, event.share_now)
            assert row["patching"] == "supports"  # a head that was moved to another place
            assert np.sign(row["patched_now"] - row["patched_before"]) == np.sign(
                row["share_now"] - row["share_before"]
            )
    assert found["evidence"]["counts"]["retained"] == int((history.state[-1] == 2).sum())
    for name, step in (("before", 0), ("now", 1)):
        shift = component_importance(edges[step].mean_abs().numpy(), (2, 4))
        assert np.allclose(found["components"]["mlp"][name], shift["mlp"], rtol=2**-11)  # the record has halves
    run = RunFolder.open(tmp_path / "post")
    circuit = HeadHistory.from_run(run, "addition", rule="circuit")
    expected = effect(circuit.importance[1], circuit.importance[0])
    assert np.any(expected)
    assert np.allclose(found["circuit"]["effect"], expected)
    inside = [{f"L{layer}.H{head}" for layer, head in Circuit.select(one, top_n=40).heads} for one in edges]
    for kind, heads in (("emerged", inside[1] - inside[0]), ("dropped", inside[0] - inside[1])):
        assert {row["head"] for row in found["circuit"]["heads"][kind]} == heads
    assert found["circuit"]["counts"]["retained"] == len(inside[0] & inside[1]) > 0
    assert main(["report", str(tmp_path / "post"), "--out", str(tmp_path / "again.html")]) == 0
    capsys.readouterr()
    assert main(["compare", *command, *[option for option in OPTIONS if option != "--json"]]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "  patched " in line]
    assert len(lines) == len(events)
    assert all(line.endswith(": supports") for line in lines)


def test_several_models_share_the_bases_probe_and_complete_records_are_kept(
    base_and_post: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, post = base_and_post
    first = compared([str(base), str(post), "--out", str(tmp_path)], capsys)
    scores = (tmp_path / "post" / "scores" / "step-00000001.safetensors").stat().st_mtime_ns
    both = compared([str(base), str(post), str(base), "--out", str(tmp_path)], capsys)
    assert both["comparisons"]["post"] == first["comparisons"]["post"]
    assert (tmp_path / "post" / "scores" / "step-00000001.safetensors").stat().st_mtime_ns == scores
    same = both["comparisons"]["base"]["addition"]  # the base against itself
    assert same["evidence"]["counts"]["emerged"] == same["evidence"]["counts"]["dropped"] == 0
    assert not np.any(same["evidence"]["effect"])
    arrays = [RunFolder.open(tmp_path / name).read_scores(0).head_scores for name in ("post", "base")]
    assert np.array_equal(*arrays)


def test_a_complete_record_is_refused_for_other_options_or_weights(
    base_and_post: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, post = tmp_path / "models" / "base", tmp_path / "models" / "post"
    for source, folder in zip(base_and_post, (base, post), strict=True):
        shutil.copytree(source, folder)
    command = [str(base), str(post), "--out", str(tmp_path / "out")]
    compared(command, capsys)

    def refused(*options: str) -> str:
        assert main(["compare", *command, *OPTIONS, *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.endswith("give another --out")
        return error

    for option, text in (
        (["--pairs", "8"], "n_pairs=16, and now it is 8"),
        (["--metric", "nll"], "metric=logit_diff, and now it is nll"),
        (["--steps", "1"], "steps=5, and now it is 1"),
        (["--q", "0.1"], "q=0.01, and now it is 0.1"),
    ):
        assert text in refused(*option)
    shutil.rmtree(tmp_path / "out" / "post")  # the pairs are still there
    assert "pairs=16, and now it is 8" in refused("--pairs", "8")
    compared(command, capsys)
    shutil.copy(base / "model.safetensors", post / "model.safetensors")
    assert "the weights that they had then" in refused()


def test_without_probes_a_look_at_the_base_chooses_the_families(
    base_and_post: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, post = map(str, base_and_post)
    options = ["--pairs", "8", "--heads-only", "--device", "cpu", "--json", "--out", str(tmp_path)]
    assert main(["compare", base, post, *options]) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"].values()
    choice = choose_families(
        AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base), "logit_diff", 8, 4.0
    )
    assert tuple(found) == choice.families
    assert json.loads((tmp_path / "probes" / "all.look.json").read_text()) == choice.to_json()


def test_component_importance_adds_the_edges_by_name(base_and_post: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_and_post[0]).eval()
    probes = ProbeSet.generate("addition", AutoTokenizer.from_pretrained(base_and_post[0]), n_pairs=4)
    edges = score_edges(model, probes)
    matrix = edges.mean_abs().numpy().astype(np.float64)
    found = component_importance(matrix, (2, 4))
    for layer in range(2):
        heads = [i for i, name in enumerate(edges.sources) if name.startswith(f"a{layer}.")]
        into = [i for i, name in enumerate(edges.targets) if name.startswith((f"a{layer}.", f"m{layer}"))]
        mlp = edges.sources.index(f"m{layer}")
        assert found["attention"][layer] == pytest.approx(matrix[heads].sum() / matrix.sum())
        assert found["mlp"][layer] == pytest.approx(matrix[mlp].sum() / matrix.sum())
        assert found["input"][layer] == pytest.approx(matrix[0, into].sum() / matrix.sum())
    rest = matrix[0, -1] / matrix.sum()
    assert sum(part.sum() for part in found.values()) + rest == pytest.approx(1.0)


def test_pairs_in_the_template_with_thinking_off_and_on(base_and_post: tuple[Path, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_and_post[0])
    probes = ProbeSet.generate(["addition", "recall"], tokenizer, n_pairs=6)
    off, on = in_chat(probes, tokenizer)
    assert len(off) == len(on) == 12
    for i in range(12):
        for side in (0, 1):
            question = probes.texts[i][side]
            place = question.index("\\boxed{")
            start = f"<|im_start|>user\n{question[:place].rstrip()}<|im_end|>\n<|im_start|>assistant\n"
            assert off.texts[i][side] == f"{start}<think>\n\n</think>\n\n{question[place:]}"
            assert on.texts[i][side] == f"{start}<think>\n{question[place:]}"
        for pairs in (off, on):
            ids = pairs.clean[i][pairs.attention_mask[i].bool()]
            assert tokenizer.decode(ids) == pairs.texts[i][0]
            assert pairs.read_positions[i, 0] == pairs.clean.shape[1] - 1
            assert torch.equal(pairs.answers[i], probes.answers[i])


def test_thinking_on_against_off_of_one_model(
    base_and_post: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    post = base_and_post[1]
    result = compared([str(post), "--think", "both", "--out", str(tmp_path)], capsys)
    assert list(result["comparisons"]) == ["post-think"]
    run = RunFolder.open(tmp_path / "post-think")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(post).eval(), AutoTokenizer.from_pretrained(post)
    for step, probes in enumerate(in_chat(ProbeSet.generate("addition", tokenizer, n_pairs=16), tokenizer)):
        assert np.array_equal(run.read_scores(step).head_scores, score_edges(model, probes).heads.per_pair.numpy())
    assert run.manifest["compared"]["think"] == ["off", "on"]
    saved = ProbeSet.load(tmp_path / "post-think" / "probes-think-on.safetensors")
    assert saved.fingerprint == run.manifest["compared"]["fingerprint_on"]


def test_openers_are_sampled_from_both_models_once(
    base_and_post: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, post = save_tiny_model(tmp_path / "untrained"), base_and_post[1]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"problem": f"What is {a}+{a}?"}) + "\n" for a in range(8)))
    options = ["--probes", "openers", "--questions", str(questions), "--pairs", "4", "--device", "cpu", "--json"]
    command = ["compare", str(base), str(post), *options, "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    assert main([*command, str(tmp_path / "b"), "--openers-from", "base"]) == 0
    ours = ProbeSet.load(tmp_path / "a" / "probes" / "post.safetensors")
    bases = ProbeSet.load(tmp_path / "b" / "probes" / "all.safetensors")
    assert len(ours) == len(bases) == 4
    assert ours.fingerprint != bases.fingerprint  # the POST began the reasoning otherwise
    assert ours.fingerprint == RunFolder.open(tmp_path / "a" / "post").manifest["probes"]["fingerprint"]
    (tmp_path / "a" / "post" / "manifest.json").unlink()
    assert main([*command, str(tmp_path / "a")]) == 0  # the frozen openers are used again
    assert ours.fingerprint == RunFolder.open(tmp_path / "a" / "post").manifest["probes"]["fingerprint"]


def test_one_line_for_a_mistake(
    base_and_post: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, post = map(str, base_and_post)
    other = save_tiny_model(tmp_path / "plain")
    narrow = tmp_path / "narrow"
    Qwen2Config(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2).save_pretrained(narrow)
    for arguments, line in (
        ([base], "name at least one model"),
        ([base, str(narrow)], "has 3 layers x 4 heads, and"),
        ([base, str(narrow), "--dry-run"], "has 3 layers x 4 heads, and"),
        ([str(other), "--think", "both"], "has no enable_thinking"),
        ([base, post, "--probes", "openers", "--think", "both"], "which openers are not"),
        ([base, str(tmp_path / "none")], "is not a folder"),
    ):
        assert main(["compare", *arguments, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert line in error[-1]
