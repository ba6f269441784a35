"""The demo's trainings under settings that change the kernels: do the same heads emerge?

    python benchmarks/demo_machines.py --out demo-machines [--only native,avx2] [--seed 0]

Each setting is a process with its own environment. It trains the demo's three models with the callback, without W&B and
without what the demo measures after training, and its row is printed: the heads with events on `carry` by the evidence
rule, in the order of the events, and the last logged reward. A finished setting is not run again. A setting takes the
CPU time of `headwatch demo` without its end (about three minutes on one core).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "native": {},
    "omp1": {"OMP_NUM_THREADS": "1"},
    "omp2": {"OMP_NUM_THREADS": "2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "mkl-avx2": {"MKL_CBWR": "AVX2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
}
FAMILY = "carry"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, one per setting")
    parser.add_argument("--only", default=",".join(SETTINGS), help="comma-separated settings (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.train, arguments.seed)
        return
    print("| setting | SFT: events on carry | GRPO: events on carry | last reward |\n| --- | --- | --- | --- |")
    for name in arguments.only.split(","):
        folder = arguments.out / name
        if not (folder / "finished").exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "--out", str(folder), "--train", str(folder)]
            command += ["--seed", str(arguments.seed)]
            with open(folder / "log", "w") as log:
                subprocess.run(command, env=os.environ | SETTINGS[name], stderr=log, stdout=log, check=True)
            (folder / "finished").touch()
        print(row(name, folder), flush=True)


def train(folder: Path, seed: int) -> None:
    """The demo's three trainings in this process."""
    from headwatch.demo.quiet import one_thread, quiet_libraries
    from headwatch.demo.run import DemoPlan, make_base, post_train

    plan = DemoPlan()
    with quiet_libraries(), one_thread():
        base = make_base(folder / "base", plan, seed)
        for method in ("sft", "grpo"):
            post_train(method, base, folder / method, plan, seed, wandb=False)


def row(name: str, folder: Path) -> str:
    """One row of docs/evidence/startup.md."""
    from headwatch.record.run_folder import RunFolder

    runs = {method: RunFolder.open(folder / method) for method in ("sft", "grpo")}
    rewards = [line["reward"] for line in runs["grpo"].training() if "reward" in line]
    cells = [name, *(events_of(run) for run in runs.values()), f"{rewards[-1]:.3f}"]
    return f"| {' | '.join(cells)} |"


def events_of(run: object) -> str:
    """Heads by the kind of their events: `L2.H0, L2.H1 emerged; L3.H3 dropped`."""
    kinds: dict[str, list[str]] = {}
    for event in run.events():  # type: ignore[attr-defined]
        if event.rule == "evidence" and event.family == FAMILY and event.status == "confirmed":
            kinds.setdefault(event.kind, []).append(f"L{event.layer}.H{event.head}")
    return "; ".join(f"{', '.join(heads)} {kind}" for kind, heads in kinds.items()) or "none"


if __name__ == "__main__":
    main()
