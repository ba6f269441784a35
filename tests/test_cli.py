"""The command line as a user types it: what it prints, and one line with exit code 2 for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.synthetic_runs import write_synthetic_run
from helpers.tiny_trainers import save_tiny_model
from transformers import AutoTokenizer

from headwatch import ProbeSet
from headwatch.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake is answered with."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    # Loading bars of other libraries end with a carriage return; ours is the last line.
    line = printed.err.rstrip("\n").splitlines()[-1]
    assert line.startswith("headwatch: ")
    assert "Traceback" not in printed.err
    return line


def test_score_prints_heads(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(model), "--probes", "addition", "recall", "--pairs", "8", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("addition: 8 pairs") == out.count("recall: 8 pairs") == 1
    assert out.count(".h") == 6


def test_score_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(model), "--pairs", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    probes = ProbeSet.generate("addition", AutoTokenizer.from_pretrained(model), n_pairs=8)
    assert found["fingerprint"] == probes.fingerprint
    heads = found["families"]["addition"]["heads"]
    assert sorted(entry["head"] for entry in heads) == [f"a{layer}.h{head}" for layer in range(2) for head in range(4)]
    assert [abs(e["score"]) for e in heads] == sorted((abs(e["score"]) for e in heads), reverse=True)


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic_run(tmp_path / "sft", kind="sft")
    write_synthetic_run(tmp_path / "grpo", kind="grpo")
    out = tmp_path / "both.html"
    assert main(["report", str(tmp_path / "sft"), str(tmp_path / "grpo"), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(out)}
    assert "synthetic-sft" in out.read_text()
    assert "synthetic-grpo" in out.read_text()


def test_mistakes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "manifest.json" in refused(capsys, "report", tmp_path)
    assert "does not exist" in refused(capsys, "report", tmp_path / "nowhere")
    assert "additon" in refused(capsys, "score", model, "--probes", "additon")
    assert "steps=0" in refused(capsys, "score", model, "--steps", 0)
    assert "n_pairs" in refused(capsys, "score", model, "--pairs", 0)
    assert "--top" in refused(capsys, "score", model, "--top", 0)
    assert "float33" in refused(capsys, "score", model, "--dtype", "float33")
    assert "no folder" in refused(capsys, "score", tmp_path / "none")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"clean": "1+1=", "corrupted": "1+2=", "clean_answer": "2"}\n')
    line = refused(capsys, "score", model, "--probes", pairs)
    assert "line 1" in line
    assert "corrupted_answer" in line
    pairs.write_text('{"clean": "1+1=", "corrupted": "1+21=", "clean_answer": "2", "corrupted_answer": "3"}\n')
    assert "line 1" in refused(capsys, "score", model, "--probes", pairs)


def test_a_family_that_the_tokenizer_cannot_align(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole words only: every number is one unknown token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    save_tiny_model(tmp_path)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "Compute": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    assert "addition" in refused(capsys, "score", tmp_path)


def test_an_unsupported_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    save_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    line = refused(capsys, "score", tmp_path)
    assert "bloom" in line
    assert "qwen2" in line


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from headwatch.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "score", "report"):
        assert command in done.stdout
        listed = subprocess.run(
            [sys.executable, "-m", "headwatch.cli", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert f"example: headwatch {command}" in " ".join(listed.stdout.split())
