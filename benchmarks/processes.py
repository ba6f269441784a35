"""Trainings over several processes: `python benchmarks/processes.py` writes docs/evidence/processes.md.

Real torchrun runs on CPU processes: {SFT, GRPO} x {full, LoRA, QLoRA} under every sharding, with and without activation
checkpointing, each with and without the callback; trainings resumed from a checkpoint; a probe that fails on one rank;
a process that is killed. One job runs all trainings of a sharding, in the same processes; a job in which a training
fails or hangs is started again with the remaining ones. Every row is appended to a file as soon as it is measured, and
the page is generated from that file: rows that it has are not run again.

`--only ZeRO-3 "FSDP2, offload"` runs some shardings; `--page` only writes the page.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.sharded_runs import ended, kill, same, same_bits, start  # noqa: E402
from helpers.tiny_trainers import load, save_tiny_model  # noqa: E402
from processes_cells import (  # noqa: E402
    CELL_LIMIT,
    LOST,
    START_LIMIT,
    Cell,
    Sharding,
    cells,
    killed_run,
    shardings,
)
from processes_page import write_page  # noqa: E402

from headwatch import ProbeSet, RunFolder, score_edges  # noqa: E402

DOCS = ROOT / "docs" / "evidence"


def measure(sharding: Sharding, todo: list[Cell], folder: Path, lines: Path) -> None:
    """Run the cells of one sharding and append a line for each."""
    folder.mkdir(parents=True)
    save_tiny_model(folder / "model")
    while todo:
        runs = {name: run for cell in todo for name, run in cell.runs().items()}
        log = (folder / "log.txt").open("a")
        job = start(folder, runs, sharding.environment, sharding.processes, log)
        since = time.monotonic() + START_LIMIT - CELL_LIMIT  # the first training has the imports before it
        while todo:
            if all(has_ended(folder, name, sharding.processes) for name in todo[0].runs()):
                append(lines, sharding, todo[0].key() | result(todo.pop(0), folder, sharding.processes))
                since = time.monotonic()
            elif job.poll() is not None or time.monotonic() - since > CELL_LIMIT:
                why = f"not ended in {CELL_LIMIT} s" if job.poll() is None else first_error(folder / "log.txt")
                append(lines, sharding, todo.pop(0).key() | {"ends": why})
                kill(job)
                break
            else:
                time.sleep(0.5)
        job.wait(timeout=60)


def has_ended(folder: Path, name: str, processes: int) -> bool:
    return all((folder / f"{name}-{rank}.pt").exists() for rank in range(processes))


def first_error(log: Path) -> str:
    """The last line of a log that names an error, shortened."""
    found = [line for line in log.read_text(errors="replace").splitlines() if "Error: " in line and "Child" not in line]
    return " ".join(found[-1].split())[:160] if found else "ended without a message"


def result(cell: Cell, folder: Path, processes: int) -> dict[str, Any]:
    """What the trainings of one cell show."""
    ranks = range(processes)

    def equal(one: str, other: str) -> bool:
        return all(same(ended(folder, cell.name(one), r), ended(folder, cell.name(other), r)) for r in ranks)

    found: dict[str, Any] = {"ends": "yes", "sharded": ended(folder, cell.name("plain"), 0)["sharding"] or "no"}
    if cell.fails:
        failed = RunFolder.open(folder / cell.name("fails")).manifest["status"] == "failed"
        found["fails"] = failed and equal("plain", "fails")
    found["same"] = equal("plain", "watched")
    found["error"] = score_error(folder, cell.name("watched"), cell.weights == "QLoRA")
    if cell.resumes:
        found["resume"] = equal_end(folder, cell, "watched", "watched-resumed", processes)
        found["resume_plain"] = equal_end(folder, cell, "plain", "plain-resumed", processes)
        found["resume_record"] = same_record(folder, cell.name("watched"), cell.name("watched-resumed"))
        found["resume_same"] = equal("plain-resumed", "watched-resumed")
    return found


def equal_end(folder: Path, cell: Cell, one: str, other: str, processes: int) -> bool:
    """Whether a resumed training ends with the weights of the uninterrupted one."""
    for rank in range(processes):
        weights, others = (ended(folder, cell.name(what), rank)["weights"] for what in (one, other))
        if not all(same_bits(weights[name], others[name]) for name in weights):
            return False
    return True


def same_record(folder: Path, one: str, other: str) -> bool:
    """Whether two records have the same steps and head scores, bit for bit."""
    first, second = RunFolder.open(folder / one), RunFolder.open(folder / other)
    return first.steps == second.steps and all(
        np.array_equal(first.read_scores(step).head_scores, second.read_scores(step).head_scores)
        for step in first.steps
    )


def score_error(folder: Path, name: str, quantised: bool) -> float:
    """Largest error of the base probe's head scores, over the largest score of one process."""
    run = RunFolder.open(folder / name)
    probes = ProbeSet.load(run.path / "probes.safetensors")
    expected = score_edges(load(folder / "model", quantised), probes).heads.per_pair.numpy()
    return float(np.abs(run.read_scores(0).head_scores - expected).max() / np.abs(expected).max())


def measure_killed(sharding: Sharding, when: str | int, folder: Path, lines: Path) -> None:
    """Seconds from the loss of a process until its job ends, and how many of the others name it."""
    folder.mkdir(parents=True)
    save_tiny_model(folder / "model")
    log = folder / "log.txt"
    with log.open("w") as output:
        job = start(folder, {"killed": killed_run(sharding, when)}, sharding.environment, sharding.processes, output)
        began, dead = time.monotonic(), folder / "killed.dies"
        while job.poll() is None and time.monotonic() - began < START_LIMIT + CELL_LIMIT:
            time.sleep(0.25)
    found: dict[str, Any] = {"killed": None}
    if job.poll() is None:
        kill(job)
    elif job.returncode and dead.exists():
        found["killed"] = round(time.time() - dead.stat().st_mtime, 1)
    found["named"] = log.read_text(errors="replace").count("headwatch: rank 1 ")
    append(lines, sharding, {"row": "killed", "when": when} | found)


def append(lines: Path, sharding: Sharding, row: dict[str, Any]) -> None:
    with lines.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"sharding": sharding.name} | row) + "\n")
    print(sharding.name, json.dumps(row), flush=True)


def done(lines: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="shardings to run, by name")
    parser.add_argument("--page", action="store_true", help="run nothing: write the page from the lines")
    parser.add_argument("--folder", type=Path, help="where the runs are kept")
    parser.add_argument("--lines", type=Path, default=DOCS / "processes.jsonl")
    parser.add_argument("--out", type=Path, default=DOCS / "processes.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for number, sharding in enumerate([] if arguments.page else shardings()):
            if arguments.only and sharding.name not in arguments.only:
                continue
            rows = [row for row in done(arguments.lines) if row["sharding"] == sharding.name]
            todo = [cell for cell in cells(sharding) if not any(cell.key().items() <= row.items() for row in rows)]
            measure(sharding, todo, folder / str(number), arguments.lines)
            for when in LOST:
                if not any(row.get("when") == when for row in rows):
                    measure_killed(sharding, when, folder / f"{number}-{when}", arguments.lines)
            write_page(done(arguments.lines), arguments.out)
    write_page(done(arguments.lines), arguments.out)


if __name__ == "__main__":
    main()
