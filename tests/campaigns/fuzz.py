"""Read damaged files of every format: each must be read, or refused with UserError, and nothing else.

    python tests/campaigns/fuzz.py --inputs 5000 --seed 0            # make fuzz
    python tests/campaigns/fuzz.py --only manifest --inputs 100000

A damaged input is a valid one with seeded mutations (mutations.py). A failure prints the format, the seed and the
exception; `--only FORMAT --first SEED --inputs 1` runs it again.
"""

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from helpers.synthetic_runs import write_synthetic_run  # noqa: E402

from campaigns.mutations import mutated_bytes, mutated_json, mutated_lines, mutated_words  # noqa: E402
from headwatch import ProbeSet, UserError  # noqa: E402
from headwatch.attribution.base_kl import BaseAnswers  # noqa: E402
from headwatch.cli import main as command_line  # noqa: E402
from headwatch.grading.answers import expression, final_answer  # noqa: E402
from headwatch.monitor.resume import find_record  # noqa: E402
from headwatch.probes.questions import load_questions  # noqa: E402
from headwatch.record.base_answers import load_base_answers, save_base_answers  # noqa: E402
from headwatch.record.replay import history_from_run as run_history  # noqa: E402
from headwatch.record.run_folder import RunFolder  # noqa: E402
from headwatch.report import figure_data, sentences  # noqa: E402
from headwatch.report.html import render, run_data  # noqa: E402
from headwatch.training.options import parse  # noqa: E402

SECONDS = 20  # one input may take; a longer one is a failure
READ, REFUSED = "read", "refused"

RECIPE = """
method: sft
extends: base.yaml
model_name_or_path: some/model
dataset_name: gsm8k
learning_rate: 1e-5
max_steps: 20
bf16: true
report_to: none
headwatch:
  every: 5
  probes: [carry, addition]
  scoring: {metric: logit_diff, steps: 5}
  evidence: {q: 0.05}
  openers:
    tokens: 4
"""
BASE = "max_length: 512\nheadwatch:\n  n_pairs: 8\n"
WORDS = [
    *(
        "score",
        "report",
        "workspace",
        "train",
        "demo",
        "--json",
        "--help",
        "--probes",
        "--pairs",
        "0",
        "-1",
        "9" * 5000,
    ),
    *("--steps", "--metric", "--alphas", "--top", "--dtype", "--device", "--gguf-file", "--out", "--figures", "--name"),
    *("--families", "--dry-run", "--seed", "addition", "nope", "", "\x00", "\udcff", "a/b", "/", "~", "*", "--", "-x"),
    *(
        "--headwatch.every",
        "--headwatch.scoring.steps",
        "--headwatch",
        "--learning_rate",
        "1e-5",
        "nan",
        "true",
        "[",
        "{",
    ),
]
ANSWERS = [
    r"The answer is \boxed{\frac{1}{2}}.",
    "<answer>72</answer>",
    r"So $x = 3\sqrt{2}$, and the answer is $\text{(B)}$ 12,345.67 cm^2",
    r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}",
]


@dataclass
class Format:
    """One kind of input.

    Attributes:
        make: a damaged input from a generator of random numbers.
        read: reads it; may raise UserError.
    """

    make: Callable[[random.Random], Any]
    read: Callable[[Any], Any]


def formats(folder: Path) -> dict[str, Format]:
    """Every format, with its valid input written into `folder`."""
    run = write_synthetic_run(folder / "run", n_pairs=8, n_layers=4, n_heads=8, steps=(0, 10), families=("addition",))
    pairs = ProbeSet.from_token_ids([[1, 2, 3], [4, 5, 6]], [[1, 5, 3], [4, 5, 7]], answers=[[7, 8], [8, 7]])
    pairs.save(folder / "probes.safetensors")
    pairs.save(folder / "probes.json")
    save_base_answers(BaseAnswers(torch.zeros(8, 5), torch.zeros(8, 5, dtype=torch.long)), run.path)
    rows = [
        {"clean_ids": [1, 2], "corrupted_ids": [1, 3], "clean_answer_id": 4, "corrupted_answer_id": 5, "family": "mine"}
    ] * 3
    questions = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(4)]
    checkpoint = folder / "output" / "checkpoint-10"
    checkpoint.mkdir(parents=True)
    (folder / "base.yaml").write_text(BASE)
    manifest = run.manifest
    manifest["settings"] = {"scoring": {"metric": "logit_diff"}, "evidence": {"q": 0.01, "test": "t"}, "every": 10}
    sidecar = {
        "format": 1,
        "step": 10,
        "last_probe": 10,
        "record": "../../run",
        "created": manifest.get("created"),
        "fingerprint": "f",
        "model": {"n_layers": 4, "n_heads": 8},
        "wandb": None,
    }

    def file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        def write_and_read(data: bytes) -> Any:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_bytes() if path.is_file() else None
            path.write_bytes(data)
            try:
                return read(path)
            finally:
                path.unlink(missing_ok=True) if before is None else path.write_bytes(before)

        return write_and_read

    def page(_: Path) -> None:
        render([run_data(RunFolder.open(run.path))])

    history = run_history(run.path)
    seen = itertools.count()

    def read_logs(path: Path) -> None:
        """All logs, and a whole page for one input of ten: the rest of a page does not depend on the logs."""
        opened = RunFolder.open(run.path)
        opened.events(), opened.scalars(), sentences.alerts(opened)
        figure_data.training_curves(opened.training())
        sentences.coupling(history, opened.training())
        if next(seen) % 10 == 0:
            page(path)

    def log(name: str) -> Format:
        valid = [json.loads(line) for line in (run.path / name).read_text().splitlines()]
        return Format(lambda rng: mutated_lines(valid, rng), file(f"run/{name}", read_logs))

    def data(path: Path) -> Callable[[random.Random], bytes]:
        valid = path.read_bytes()
        return lambda rng: mutated_bytes(valid, rng)

    run.append_alerts(
        [{"step": 10, "kind": "completeness", "family": "addition", "text": "a sentence", "level": "warning"}]
    )
    options = yaml.safe_load(RECIPE)  # JSON is YAML
    args = SimpleNamespace(output_dir=str(folder / "output"), resume_from_checkpoint=None)
    words = [
        ["score", "no/model", "--probes", "carry", "--pairs", "4"],
        ["report", str(run.path)],
        ["train", "base.yaml"],
    ]
    words += [["workspace", "entity/project", "--dry-run"], ["train", str(folder / "base.yaml"), "--max_steps", "1"]]
    return {
        "manifest": Format(lambda rng: mutated_json(manifest, rng), file("run/manifest.json", page)),
        "events": log("events.jsonl"),
        "scalars": log("scalars.jsonl"),
        "training": log("training.jsonl"),
        "alerts": log("alerts.jsonl"),
        "scores": Format(
            data(run.path / "scores" / "step-00000010.safetensors"), file("run/scores/step-00000010.safetensors", page)
        ),
        "sidecar": Format(
            lambda rng: mutated_json(sidecar, rng),
            file("output/checkpoint-10/headwatch_state.json", lambda _: find_record(args, 10, folder / "fresh")),
        ),
        "probes json": Format(
            lambda rng: mutated_json(json.loads((folder / "probes.json").read_text()), rng),
            file("damaged.json", ProbeSet.load),
        ),
        "probes jsonl": Format(lambda rng: mutated_lines(rows, rng), file("damaged.jsonl", ProbeSet.load)),
        "probes safetensors": Format(data(folder / "probes.safetensors"), file("damaged.safetensors", ProbeSet.load)),
        "base answers": Format(
            data(run.path / "base_answers.safetensors"),
            file("base/base_answers.safetensors", lambda path: load_base_answers(path.parent)),
        ),
        "questions": Format(
            lambda rng: mutated_lines(questions, rng), file("questions.jsonl", lambda path: load_questions([str(path)]))
        ),
        "recipe": Format(
            lambda rng: mutated_json(options, rng) if rng.random() < 0.5 else mutated_bytes(RECIPE.encode(), rng),
            file("recipe.yaml", lambda path: parse([str(path)]).settings()),
        ),
        "command line": Format(
            lambda rng: mutated_words(rng.choice(words), WORDS, rng), lambda given: _command(given, folder)
        ),
        "answer": Format(
            lambda rng: mutated_bytes(rng.choice(ANSWERS).encode(), rng).decode("utf-8", "replace"),
            lambda text: expression(final_answer(text) or text),
        ),
    }


def _command(words: list[str], folder: Path) -> None:
    """Run a command line; one that would start a training or send something is only parsed."""
    if words[:1] == ["demo"] or (words[:1] == ["workspace"] and "--dry-run" not in words):
        words = [*words, "--no-such-option"]
    if words[:1] == ["train"]:
        words = [*words, "--dry-run", "--no-such-option"]
    if words[:1] == ["report"]:  # writes a page: only inside the folder
        words = [*words, "--out", str(folder / "page.html")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        status = command_line(words)
        text = printed.getvalue()
        if status == 2 and "Traceback" not in text and text.count("\n") <= 12:
            raise UserError(text)
        if status != 0:
            raise AssertionError(f"exit status {status}: {text[-300:]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def run_format(name: str, what: Format, seeds: range) -> tuple[dict[str, int], list[str]]:
    """Counts of inputs read and refused, and a text for each failure."""
    counts, failures = {READ: 0, REFUSED: 0}, []
    for seed in seeds:
        given = what.make(random.Random(f"{name} {seed}"))
        try:
            with _limited(), warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")
                what.read(given)
            counts[READ] += 1
        except UserError as error:
            counts[REFUSED] += 1
            if not str(error).strip():
                failures.append(f"{name}, seed {seed}: refused without a reason")
        except (Exception, SystemExit) as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(at.filename).name}:{at.lineno}" for at in where if "/headwatch/headwatch/" in at.filename]
            ours = ours or [f"{Path(at.filename).name}:{at.lineno}" for at in where][-3:]
            text = " ".join(str(error).split())[:160]
            failures.append(f"{name}, seed {seed}: {type(error).__name__}: {text} ({' '.join(ours[-3:])})")
    return counts, failures


def main() -> int:
    """Run the campaign; 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000, help="damaged inputs per format")
    parser.add_argument("--first", type=int, default=0, help="seed of the first input")
    parser.add_argument("--only", nargs="+", help="formats; all by default")
    parser.add_argument("--shown", type=int, default=5, help="failures printed per format")
    given = parser.parse_args()
    failed = 0
    print(f"{'format':<20} {'inputs':>8} {'read':>8} {'refused':>8} {'failed':>7} {'seconds':>8}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, what in formats(Path(folder)).items():
            if given.only and name not in given.only:
                continue
            began = time.perf_counter()
            counts, failures = run_format(name, what, range(given.first, given.first + given.inputs))
            failed += len(failures)
            took = time.perf_counter() - began
            numbers = f"{given.inputs:>8} {counts[READ]:>8} {counts[REFUSED]:>8} {len(failures):>7} {took:>8.0f}"
            print(f"{name:<20} {numbers}", flush=True)
            for line in failures[: given.shown]:
                print(f"  {line}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
