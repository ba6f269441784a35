"""The commands: what they print, and one line with exit code 2 for a user's mistake."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.synthetic_runs import write_synthetic_run
from helpers.tiny_trainers import save_tiny_model
from transformers import AutoTokenizer

from headwatch import ProbeSet
from headwatch.attribution import METRICS
from headwatch.attribution.path import ALPHA_RULES
from headwatch.cli import main
from headwatch.commands import options, score
from headwatch.commands.loading import use_local_files_without_network
from headwatch.kernels.launch import KERNELS
from headwatch.probes import FAMILIES
from headwatch.sinks.factory import NAMES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that is printed for a mistake."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    # Progress bars of other libraries end with a carriage return.
    line = printed.err.rstrip("\n").splitlines()[-1]
    assert line.startswith("headwatch: ")
    assert "Traceback" not in printed.err
    return line


def test_score_prints_heads(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(model), "--probes", "addition", "recall", "--pairs", "8", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("addition: 8 pairs") == out.count("recall: 8 pairs") == 1
    assert out.count(".H") == 6


def test_score_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(model), "--pairs", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    probes = ProbeSet.generate("addition", AutoTokenizer.from_pretrained(model), n_pairs=8)
    assert found["fingerprint"] == probes.fingerprint
    heads = found["families"]["addition"]["heads"]
    assert sorted(entry["head"] for entry in heads) == [f"L{layer}.H{head}" for layer in range(2) for head in range(4)]
    assert [abs(e["score"]) for e in heads] == sorted((abs(e["score"]) for e in heads), reverse=True)


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic_run(tmp_path / "sft", kind="sft")
    write_synthetic_run(tmp_path / "grpo", kind="grpo")
    out = tmp_path / "both.html"
    assert main(["report", str(tmp_path / "sft"), str(tmp_path / "grpo"), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(out)}
    assert "synthetic-sft" in out.read_text()
    assert "synthetic-grpo" in out.read_text()


def test_report_of_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page covers every run in the folder and is written to that folder."""
    write_synthetic_run(tmp_path / "runs" / "sft" / "headwatch", kind="sft")
    write_synthetic_run(tmp_path / "runs" / "grpo", kind="grpo")
    assert main(["report", str(tmp_path / "runs")]) == 0
    page = tmp_path / "runs" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert "synthetic-sft" in page.read_text()
    assert "synthetic-grpo" in page.read_text()


def test_the_choices_are_those_of_the_package() -> None:
    assert tuple(METRICS) == options.METRICS
    assert options.KERNELS == KERNELS
    assert ALPHA_RULES == options.ALPHAS
    assert tuple(FAMILIES) == options.FAMILIES
    assert ("none", *NAMES) == options.SERVICES


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("score MODEL --metric additon", "--metric: 'additon' is unknown; use one of logit_diff, kl, nll"),
        ("score MODEL --alphas centre", "--alphas: 'centre' is unknown; use one of midpoint, right, left, clean"),
        ("score MODEL --steps 0", "--steps: 0 must be a whole number of at least 1"),
        ("score MODEL --pairs 0", "--pairs: 0 must be a whole number of at least 1"),
        ("score MODEL --pairs 1.5", "--pairs: 1.5 must be a whole number of at least 1"),
        ("score MODEL --top 0", "--top: 0 must be a whole number of at least 1"),
        ("score MODEL --probes additon", "neither a family nor an existing file; did you mean addition?"),
        ("score MODEL --probes carry zebra", "--probes zebra: not a family (a file must be given alone)"),
        ("score ./none", "model './none' is not a folder"),
        ("score outputs/sft/checkpoint-9", "model 'outputs/sft/checkpoint-9' is not a folder"),
        ("score FOLDER", "has no config.json; it holds small.gguf: add --gguf-file small.gguf"),
        ("score FOLDER/small.gguf", "is a file: give its folder, and --gguf-file small.gguf"),
        (
            "compare FOLDER MODEL",
            "it holds small.gguf: convert it in Python: for each of transformers.AutoModelForCausalLM",
        ),
        ("doctor FOLDER/small.gguf", "small.gguf' is a file: convert it in Python"),
        ("score FOLDER --gguf-file big.gguf", "--gguf-file big.gguf: there is no such file"),
        ("score MODEL --tpo 3", "unrecognized arguments: --tpo 3"),
        ("score", "the following arguments are required: MODEL"),
        ("train nope.yaml", "recipe 'nope.yaml' is not a file"),
        (
            "train FOLDER/small.gguf --headwatch_every 5",
            "the block are written --headwatch.every",
        ),
        ("ablate MODEL --heads L0.H0 --suite gsmk", "--suite gsmk is unknown: did you mean gsm8k?"),
        ("ablate MODEL --heads L0.Hx --suite gsm8k", "--heads: 'L0.Hx' is not a head; write layer and head"),
        ("ablate MODEL --circuit none.json --suite gsm8k", "--circuit none.json: there is no such file"),
        ("ablate MODEL --heads L0.H0 --suite gsm8k --random -1", "--random: -1 must be a whole number of at least 0"),
        ("ablate MODEL --run FOLDER --suite gsm8k", "manifest.json"),
        ("evaluate MODEL --suite gsm8k --run FOLDER/nowhere", "does not exist"),
        ("evaluate MODEL --suite gsm8k --temperature -1", "--temperature: -1 must be a number of at least 0"),
        ("evaluate MODEL --suite gsm8k --top-p 2", "--top-p: 2 must be a number above 0 and at most 1"),
        ("circuit MODEL --faithful x", "--faithful: x must be a number above 0 and at most 1"),
        ("circuit MODEL --out FOLDER/no/folder", "does not exist; create it first"),
        ("circuit MODEL --run FOLDER/nowhere", "does not exist"),
        ("roles MODEL --heads zero", "--heads: 'zero' is not a head"),
        ("roles MODEL --out FOLDER/pictures", "--out needs --heads"),
        ("compare MODEL", "name at least one model to compare with BASE"),
        ("compare MODEL MODEL --q nan", "--q: nan must be a number above 0 and at most 1"),
        ("compare MODEL MODEL --top-n 1.5", "--top-n: 1.5 must be a number of edges (5000) or a share"),
        ("compare MODEL MODEL --report-to none wanbd", "--report-to: 'wanbd' is unknown; use one of none, wandb"),
        ("compare MODEL MODEL --out FOLDER/no/folder", "does not exist; create it first"),
        ("follow FOLDER", "no checkpoint in it"),
        ("follow FOLDER --poll 0", "--poll: 0 must be a number above 0"),
        ("follow FOLDER --pattern (", "--pattern '(' is not a regular expression"),
        ("demo --seed -1", "--seed: -1 must be a whole number from 0"),
        ("report FOLDER", "manifest.json"),
        ("report FOLDER/nowhere", "does not exist"),
    ],
)
def test_a_mistake_is_reported_before_torch_is_imported(
    arguments: str,
    line: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "small.gguf").touch()
    for name in [name for name in sys.modules if name.startswith(("headwatch.attribution", "headwatch.training"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torch", "transformers", "trl"):
        monkeypatch.setitem(sys.modules, name, None)
    words = arguments.replace("MODEL", str(model)).replace("FOLDER", str(tmp_path)).split()
    assert line in refused(capsys, *words)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(
            "--device cuda",
            "--device cuda cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available"),
        ),
        ("--device warp", "--device warp cannot be used"),
        ("--dtype float33", "--dtype float33 is not a torch dtype"),
        ("--metric kl --alphas clean", "identically zero"),
    ],
)
def test_a_mistake_is_reported_before_the_model_is_loaded(
    arguments: str, line: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "load_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert line in refused(capsys, "score", model, *arguments.split())


@pytest.mark.parametrize(
    ("corrupted", "reason"),
    [('"1+2="', "corrupted_answer"), ('"1+21=", "corrupted_answer": "3"', "differ in token length")],
    ids=["no-answer", "misaligned"],
)
def test_a_mistake_in_a_file_of_pairs(
    corrupted: str, reason: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(f'{{"clean": "1+1=", "clean_answer": "2", "corrupted": {corrupted}}}\n')
    line = refused(capsys, "score", model, "--probes", pairs)
    assert "line 1" in line
    assert reason in line


def test_a_family_that_the_tokenizer_cannot_align(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer of whole words, for which every number is one unknown token."""
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
    assert "headwatch doctor" in line


def test_help_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from headwatch.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "score", "report", "workspace"):
        assert command in done.stdout
        listed = subprocess.run(
            [sys.executable, "-m", "headwatch", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        text = " ".join(listed.stdout.split())
        assert f"example: headwatch {command}" in text
        if command == "score":
            assert ", ".join(FAMILIES) in text


def test_deepspeed_does_not_say_first_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("headwatch ")
    deepspeed = logging.getLogger("DeepSpeed")
    texts = ("Setting accelerator to CPU. If you have GPU", "another warning")
    records = [logging.LogRecord("DeepSpeed", logging.WARNING, "", 0, text, None, None) for text in texts]
    assert [bool(deepspeed.filter(record)) for record in records] == [False, True]


@pytest.mark.parametrize(
    ("variables", "offline"),
    [
        ({"HF_ENDPOINT": "https://no-such-host.invalid"}, "1"),
        ({"HF_ENDPOINT": "http://localhost:9"}, None),
        ({"HF_ENDPOINT": "https://no-such-host.invalid", "https_proxy": "http://localhost:9"}, None),
        ({"HF_ENDPOINT": "https://no-such-host.invalid", "HF_HUB_OFFLINE": "0"}, "0"),
    ],
)
def test_without_network_local_files_are_used_at_once(
    variables: dict[str, str], offline: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = os.environ.get("HF_HUB_OFFLINE")
    use_local_files_without_network()
    found = os.environ.get("HF_HUB_OFFLINE")
    if before is None:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert found == offline
