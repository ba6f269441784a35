"""Real trainings with one injected fault each: the weights must not change, and the record must stay readable.

    python tests/campaigns/faults.py --runs 240 --seed 0 --processes 2     # make faults
    python tests/campaigns/faults.py --runs 1 --seed 17                    # one run again

Every run is a child process of one that has imported everything. The fault, its place and its time come from the seed.
Checked of each run:

- weights: bit for bit those of the same training without the callback; after a signal, those of a training resumed
  without the callback from the same checkpoint;
- the training ends as without the callback: nothing of headwatch's ends it;
- the record opens, a report can be made of it, and its status agrees with how the run ended;
- each warning of headwatch is logged once.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from helpers.tiny_trainers import TRAINERS, save_tiny_model, trained_weights  # noqa: E402

from headwatch import HeadWatchCallback, RunFolder, callback  # noqa: E402
from headwatch.errors import UserError  # noqa: E402
from headwatch.io import atomic, jsonl  # noqa: E402
from headwatch.monitor import probe_pass  # noqa: E402
from headwatch.report.html import render, run_data  # noqa: E402
from headwatch.sinks import Sink  # noqa: E402

SECONDS = 120  # one training may take


@dataclass(frozen=True)
class Variant:
    """One kind of training: sft or grpo; full, lora or qlora; with gradient checkpointing or not."""

    trainer: str
    method: str
    checkpointed: bool

    @property
    def name(self) -> str:
        return f"{self.trainer}-{self.method}" + ("-checkpointed" if self.checkpointed else "")

    def build(self, model: Path, output: Path, callbacks: list[TrainerCallback], saves: bool) -> Any:
        """The trainer."""
        changes: dict[str, Any] = {"lora": self.method != "full", "gradient_checkpointing": self.checkpointed}
        if saves:
            changes |= {"save_strategy": "steps", "save_steps": 2}
        trainer = TRAINERS[self.trainer]
        if self.method == "qlora":
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
            quantised = AutoModelForCausalLM.from_pretrained(model, quantization_config=config, device_map="cpu")
            load = AutoModelForCausalLM.from_pretrained
            AutoModelForCausalLM.from_pretrained = lambda *_, **__: quantised  # type: ignore[method-assign,assignment]
            try:
                return trainer(model, output, callbacks, **changes)
            finally:
                AutoModelForCausalLM.from_pretrained = load  # type: ignore[method-assign]
        return trainer(model, output, callbacks, **changes)


VARIANTS = [Variant(*each) for each in itertools.product(("sft", "grpo"), ("full", "lora", "qlora"), (False, True))]


# --- faults -----------------------------------------------------------------------------------------------------------


class Diverges(TrainerCallback):
    """Sets a weight to NaN or infinity at a step; part of the training, so its reference has it too."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            trained = [p for p in model.parameters() if p.requires_grad]
            with torch.no_grad():
                trained[len(trained) // 2].view(-1)[0] = self.value


class AtStep(TrainerCallback):
    """Does something at a step."""

    def __init__(self, step: int, action: Callable[[Path], None]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action(Path(args.output_dir) / "headwatch")


class RaisesAt(torch.overrides.TorchFunctionMode):
    """Raises at the n-th torch call of a pass."""

    def __init__(self, call: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = call, error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= getattr(func, "__name__", "") not in ("__get__", "data_ptr")  # these compute nothing
        if self.left == 0:
            self.left = -1
            raise self.error
        return func(*args, **(kwargs or {}))


def in_the_pass(rng: random.Random, error: BaseException) -> None:
    """The n-th pass raises at one of its torch calls."""
    passes, call, score = itertools.count(), int(10 ** rng.uniform(0, 3.3)), probe_pass.score_by_metric
    nth = rng.randrange(3)

    def failing(*args: Any, **kwargs: Any) -> Any:
        with RaisesAt(call, error) if next(passes) == nth else contextlib.nullcontext():
            return score(*args, **kwargs)

    probe_pass.score_by_metric = failing  # type: ignore[assignment]


def full_disk(rng: random.Random) -> None:
    """Writes of the record fail from the n-th on, for a while or for good; some leave half of their bytes."""
    first, many, torn = rng.randrange(12), rng.choice((1, 3, 10_000)), rng.random() < 0.5
    writes = itertools.count()

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r" not in mode and first <= next(writes) < first + many:
            if torn:
                with contextlib.suppress(OSError), open(path, mode) as file:
                    file.write(b'{"step": 2, "los')
            raise OSError(28, "No space left on device", str(path))
        return open(path, mode, *args, **kwargs)

    jsonl.open = atomic.open = opened  # type: ignore[attr-defined]


def garbled(rng: random.Random) -> Callable[[Path], None]:
    """One file of the record gets other bytes."""

    def damage(folder: Path) -> None:
        being_written = f".{os.getpid()}"
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != being_written)
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        for _ in range(1 + len(data) // 50 if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), len(data) // 2, 0))])

    return damage


def vanished(rng: random.Random) -> Callable[[Path], None]:
    """The record, or one part of it, is deleted."""
    part = rng.choice(("", "scores", "manifest.json", "scalars.jsonl"))

    def delete(folder: Path) -> None:
        path = folder / part
        # A probe's files may be written at the same time, so a folder need not stay empty.
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    return delete


class FailingSink(Sink):
    """Raises at some of its calls."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def _maybe(self) -> None:
        if self.rng.random() < 0.5:
            raise ConnectionError("the service is away")

    def log(self, *args: Any, **kwargs: Any) -> None:
        self._maybe()

    def run_info(self) -> dict[str, Any] | None:
        self._maybe()
        return None

    def finish(self) -> None:
        self._maybe()


def jumping_clock(rng: random.Random) -> None:
    """Clocks go forward and back by up to a year."""
    for name in ("time", "perf_counter", "monotonic"):
        real = getattr(time, name)
        setattr(time, name, lambda real=real: real() + rng.choice((0.0, 0.0, 3.15e7, -3.15e7, rng.uniform(-5, 5))))


FAULTS = (
    *("exception", "out of memory", "MemoryError", "NaN", "infinity", "full disk", "vanished", "garbled"),
    *("failing sink", "clock", "SIGKILL", "SIGTERM", "SIGINT"),
)
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


def inject(fault: str, rng: random.Random, callbacks: list[TrainerCallback]) -> None:
    """Prepare the fault in this process."""
    if fault == "exception":
        kind = rng.choice((RuntimeError, ValueError, TypeError, KeyError, ZeroDivisionError, RecursionError))
        in_the_pass(rng, kind("injected"))
    elif fault == "out of memory":
        in_the_pass(rng, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    elif fault == "MemoryError":
        in_the_pass(rng, MemoryError())
    elif fault == "full disk":
        full_disk(rng)
    elif fault in ("vanished", "garbled"):
        action = vanished(rng) if fault == "vanished" else garbled(rng)
        callbacks.append(AtStep(rng.randrange(1, 4), action))
    elif fault == "failing sink":
        callback.make_sinks = lambda *_, **__: [FailingSink(rng)]  # type: ignore[assignment]
    elif fault == "clock":
        jumping_clock(rng)
    elif fault in SIGNALS:
        if fault == "SIGINT":
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), SIGNALS[fault]))
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.05, 2.5))


# --- one run ----------------------------------------------------------------------------------------------------------


class Warned(logging.Handler):
    """Collects the warnings of headwatch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def training(
    variant: Variant,
    fault: str | None,
    seed: int,
    model: Path,
    output: Path,
    watched: bool,
    resumed: bool = False,
) -> dict[str, Any]:
    """One training in this process."""
    rng = random.Random(f"{seed} {fault}")
    torch.set_num_threads(1)
    heard = Warned()
    logging.getLogger("headwatch").addHandler(heard)
    callbacks: list[TrainerCallback] = []
    if fault in ("NaN", "infinity"):
        callbacks.append(Diverges(rng.randrange(1, 4), float("nan") if fault == "NaN" else float("inf")))
    if watched:
        watch = HeadWatchCallback("addition", every=rng.choice((1, 2)), n_pairs=8)
        callbacks.insert(0, watch)
        if not resumed and fault is not None:
            inject(fault, rng, callbacks)
    trainer = variant.build(model, output, callbacks, saves=fault in SIGNALS)
    checkpoint = get_last_checkpoint(str(output)) if resumed and output.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    signal.setitimer(signal.ITIMER_REAL, 0)
    digest = hashlib.sha256()
    for name, weight in sorted(trained_weights(trainer).items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {"weights": digest.hexdigest(), "warnings": heard.texts}


def in_child(action: Callable[[], dict[str, Any]], errors: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """The result of `action` in a forked child; {"ended": how} where it did not return in time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            result = action()
            os.write(writer, json.dumps(result).encode())
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            import atexit

            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()  # what runs at the end of a process that raised
            os._exit(code)
    os.close(writer)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGXCPU))
    timer.start()
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    timer.cancel()
    status = os.waitpid(child, 0)[1]
    if data:
        return json.loads(data)
    if os.WIFSIGNALED(status):
        return {"ended": signal.Signals(os.WTERMSIG(status)).name}
    return {"ended": f"exit {os.WEXITSTATUS(status)}"}


def check_record(folder: Path, fault: str, ended: str | None) -> list[str]:
    """What is wrong with the record of a run."""
    if not (folder / "manifest.json").is_file():
        lost = fault in ("vanished", "full disk", "garbled") or ended is not None
        return [] if lost else ["no record"]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run = RunFolder.open(folder)
            render([run_data(run)])
        except UserError as error:
            damaged = fault in ("garbled", "vanished", "full disk")
            return [] if damaged and "\n" not in str(error) else [f"record refused: {error}"]
        except Exception as error:
            return [f"record unreadable: {type(error).__name__}: {error}"]
    if ended is not None and run.status != "interrupted":
        found.append(f"status {run.status} after {ended}")
    if ended is None and run.status not in ("finished", "failed") and fault not in ("full disk", "garbled", "vanished"):
        found.append(f"status {run.status} at the end")
    return found


def one_run(seed: int, model: Path, folder: Path, references: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """One training with the fault of this seed; its faults are listed under "wrong"."""
    variant, fault = VARIANTS[seed % len(VARIANTS)], FAULTS[seed % len(FAULTS)]  # 12 x 13: every combination
    output, errors = folder / f"run-{seed}", folder / f"run-{seed}.log"
    key = (variant.name, *((fault, str(seed)) if fault in ("NaN", "infinity") else ()), str(fault in SIGNALS))
    if key not in references:
        plain = in_child(lambda: training(variant, fault, seed, model, folder / f"plain-{seed}", watched=False), errors)
        references[key] = plain.get("weights", plain.get("ended"))  # NaN ends a training that samples
        shutil.rmtree(folder / f"plain-{seed}", ignore_errors=True)
    result = in_child(lambda: training(variant, fault, seed, model, output, watched=True), errors)
    wrong = []
    ended = result.get("ended")
    if ended is not None and fault not in SIGNALS and ended != references[key]:
        wrong.append(f"the training ended by {ended}")
    wrong += check_record(output / "headwatch", fault, ended)
    expected = references[key]
    if ended is not None and fault in SIGNALS:
        # A torn checkpoint ends both; a resumed QLoRA training differs from an uninterrupted one without headwatch too.
        twin = folder / f"resumed-plain-{seed}"
        if output.is_dir():
            shutil.copytree(output, twin, ignore=shutil.ignore_patterns("headwatch"))
        plain = in_child(lambda: training(variant, fault, seed, model, twin, watched=False, resumed=True), errors)
        expected = plain.get("weights", plain.get("ended"))
        shutil.rmtree(twin, ignore_errors=True)
        result = in_child(lambda: training(variant, fault, seed, model, output, watched=True, resumed=True), errors)
        if "ended" in result and result["ended"] != expected:
            wrong.append(f"the resumed training ended by {result['ended']}")
        wrong += [f"resumed: {each}" for each in check_record(output / "headwatch", "none", result.get("ended"))]
    if "weights" in result and result["weights"] != expected:
        wrong.append("other weights")
    repeated = [text for text, times in Counter(result.get("warnings", [])).items() if times > 1]
    wrong += [f"warned more than once: {text[:120]}" for text in repeated]
    if sum("probing is off" in text for text in result.get("warnings", [])) > 1:
        wrong.append("turned off more than once")
    if not wrong:
        shutil.rmtree(output, ignore_errors=True)
    return {
        "seed": seed,
        "variant": variant.name,
        "fault": fault,
        "ended": ended,
        "warned": len(result.get("warnings", [])),
        "wrong": wrong,
        "log": str(errors),
    }


def campaign(seeds: range, folder: Path) -> list[dict[str, Any]]:
    """Every run of the campaign, one after the other."""
    model = save_tiny_model(folder / "model")
    references: dict[tuple[str, ...], str] = {}
    return [one_run(seed, model, folder, references) for seed in seeds]


def _split(runs: int, first: int, processes: int) -> Iterator[range]:
    size = -(-runs // processes)
    for start in range(first, first + runs, size):
        yield range(start, min(start + size, first + runs))


def main() -> int:
    """Run the campaign; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=240, help="number of trainings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time")
    parser.add_argument("--json", help="write all results to this file")
    given = parser.parse_args()
    began = time.perf_counter()
    import trl

    _ = trl.SFTTrainer, trl.GRPOTrainer, trl.SFTConfig, trl.GRPOConfig  # imported once, before the forks
    tqdm.monitor_interval = 0  # no thread of tqdm's: in a child, the lock that it held at the fork stays locked

    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    parts = list(_split(given.runs, given.seed, given.processes))

    def part(number: int) -> list[dict[str, Any]]:
        own = folder / f"part-{number}"
        own.mkdir()
        child = in_child(lambda: {"results": campaign(parts[number], own)}, own / "campaign.log", seconds=3600)
        if "results" not in child:
            raise RuntimeError(f"the campaign itself ended: {child}, see {own / 'campaign.log'}")
        return child["results"]

    with ThreadPoolExecutor(len(parts)) as pool:
        results = [result for part_results in pool.map(part, range(len(parts))) for result in part_results]
    by_fault = {fault: [r for r in results if r["fault"] == fault] for fault in FAULTS}
    print(f"{'fault':<14} {'runs':>5} {'ended early':>11} {'warned':>7} {'wrong':>6}")
    for fault, some in by_fault.items():
        early, warned = sum(r["ended"] is not None for r in some), sum(r["warned"] > 0 for r in some)
        print(f"{fault:<14} {len(some):>5} {early:>11} {warned:>7} {sum(bool(r['wrong']) for r in some):>6}")
    wrong = [r for r in results if r["wrong"]]
    for r in wrong:
        print(f"seed {r['seed']}, {r['variant']}, {r['fault']}: {'; '.join(r['wrong'])} ({r['log']})")
    print(f"{len(results)} runs, {len(wrong)} with something wrong, {time.perf_counter() - began:.0f} s")
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1) + "\n")
    if not wrong:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
