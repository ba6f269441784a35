"""`headwatch circuit` and `headwatch roles`, on a saved model."""

import json
from pathlib import Path

import pytest
import wandb
from helpers.plain_run import write_plain_run
from helpers.tiny_trainers import save_tiny_model
from helpers.wandb_files import offline_runs
from transformers import Qwen2Config

from headwatch.analysis.event_patching import PATCHING
from headwatch.circuits.selection import METHODS, RANKINGS
from headwatch.cli import main
from headwatch.commands import circuit, compare
from headwatch.lives.events import Event
from headwatch.record.after import read_results


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def test_circuit(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["circuit", model, "--probes", "addition", "recall", "--pairs", "6", "--steps", "1", "--random", "1"]
    assert main([*command, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [family["family"] for family in found["families"]] == ["addition", "recall"]
    for family in found["families"]:
        assert (family["selected_on"], family["evaluated_on"]) == (3, 3)
        last = family["curve"][-1]
        assert last["edges"] == family["real_edges"]
        assert last["faithfulness"] == pytest.approx(1.0, abs=1e-4)
        folder = tmp_path / family["family"]
        assert json.loads((folder / "curve.json").read_text()) == family
        graph = json.loads((folder / "graph.json").read_text())
        assert sum(edge["in_graph"] for edge in graph["edges"].values()) == family["edges"]
    assert sorted(found["files"]) == sorted(str(path) for path in tmp_path.glob("*/*"))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    (tmp_path / "recall" / "settings.json").unlink()  # as after a kill before the last file of the second family
    assert main([*command, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    changed = {path.parent.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"recall"}
    assert main([*command, "--edges", "20", "--method", "greedy", "--rank", "abs_mean", "--same-pairs"]) == 0
    text = capsys.readouterr().out
    assert "recall: circuit of" in text
    assert "evaluated on 6" in text


def test_results_are_kept_in_a_run_and_logged_hidden(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.teardown()  # wandb reads its environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = write_plain_run(tmp_path / "run", [0, 1], layers=2, heads=4)
    event = Event(1, "addition", 1, 3, "emerged", 0.0, 0.1)
    run.append_events([event])
    keep = ["--probes", "recall", "--run", str(tmp_path / "run"), "--report-to", "wandb", "--json"]
    assert main(["circuit", model, "--pairs", "4", "--steps", "1", "--random", "1", *keep]) == 0
    (circuits,) = read_results(run, "circuits")
    found = json.loads(capsys.readouterr().out)
    assert found["families"] == circuits["families"]
    assert found["files"] == [str(run.path / "after" / "circuits.json")]
    assert main(["roles", model, "--pairs", "2", *keep]) == 0
    (roles,) = read_results(run, "roles")
    printed = {row["head"]: row for row in json.loads(capsys.readouterr().out)["heads"]}
    assert {row["head"]: row for row in roles["heads"]} == printed
    assert [pattern["head"] for pattern in roles["patterns"]] == ["L1.H3"]  # the head with an event
    runs = offline_runs(tmp_path)
    assert len(runs) == 2
    by_key = {key: each for each in runs for key in each.hidden}
    logged = by_key["headwatch/circuit/recall/curve"]
    assert logged.summary["headwatch/circuit/recall/cpr"] == circuits["families"][0]["cpr"]
    assert logged.hidden["headwatch/circuit/recall/curve"]
    assert by_key["headwatch/roles/heads"].hidden["headwatch/roles/heads"]
    assert all(each.visible("headwatch/") == [] for each in runs)
    assert main(["circuit", model, "--run", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_roles(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["roles", model, "--probes", "recall", "--pairs", "3"]
    assert main([*command, "--base", model, "--heads", "L1.H2", "a0.h1", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["head"] for row in found["heads"]} == {"L1.H2", "L0.H1"}
    assert all(row["weight_change"] == 0.0 for row in found["heads"])
    assert [Path(file).name for file in found["files"]] == ["recall-L1.H2.svg", "recall-L0.H1.svg"]
    assert all(Path(file).is_file() for file in found["files"])
    assert main([*command, "--sort", "induction", "--top", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "weight_change" not in lines[0]  # without a base
    texts = tmp_path / "samples.jsonl"
    rows = [{"problem": 1, "text": " ".join(f"{a}+{a}={2 * a}." for a in range(20, 20 + n))} for n in (8, 9, 10)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*command, "--texts", str(texts), "--n-texts", "2", "--sort", "sentence_kurtosis", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == 2
    assert all(row["sentence_kurtosis"] is not None for row in found["heads"])
    texts.write_text("[]\n")
    assert main([*command, "--texts", str(texts)]) == 2
    assert 'samples.jsonl, line 1: no JSON object with a "text"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["roles", "--heads", "L99H0"], "--heads: the model has no head L99H0; its heads are L0.H0 to L1.H3"),
        (["roles", "--out", "pictures"], "--out needs --heads"),
        (["roles", "--base", "OTHER"], "has 3 layers x 2 heads, and"),
        (["circuit", "--faithful", "2"], "2 must be a number above 0 and at most 1"),
        (["circuit", "--random", "-1"], "-1 must be a whole number of at least 0"),
        (["circuit", "--rank", "best"], "'best' is unknown; use one of mean_abs"),
        (["circuit", "--heads-only"], "unrecognized arguments: --heads-only"),
        (["circuit", "--pairs", "1"], "has one pair, and none is left to evaluate on; use --same-pairs"),
    ],
)
def test_a_mistake_is_one_line(
    command: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "OTHER" in command:
        Qwen2Config(num_hidden_layers=3, num_attention_heads=2, hidden_size=8).save_pretrained(tmp_path)
        command = [str(tmp_path) if word == "OTHER" else word for word in command]
    assert main([command[0], model, "--probes", "recall", *command[1:]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("headwatch: ")
    assert message in error


def test_the_command_knows_the_rules() -> None:
    assert (circuit.RANKINGS, circuit.METHODS) == (RANKINGS, METHODS)
    assert compare.PATCHING == PATCHING
