"""Summarise finished runs: training, heads, and their variation over seeds.

    python benchmarks/results.py outputs/sft-42 outputs/sft-43 outputs/grpo-42 ... [--json FILE]

Runs of the same trainer are treated as seeds; numbers over seeds are the mean with Student's 95 % interval. Everything
is read from the run folders (docs/evidence/results.md was written from this).
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from headwatch import HeadHistory, RunFolder

THIRDS = ("first third", "last third")


def over(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Mean and half width of the 95 % interval (Student's t; None with fewer than two values)."""
    known = np.array([v for v in values if v is not None], dtype=float)
    half = float(stats.t.ppf(0.975, len(known) - 1) * stats.sem(known)) if len(known) > 1 else None
    return {"mean": float(known.mean()) if len(known) else None, "half": half, "n": len(known)}


def training(record: RunFolder) -> dict[str, dict[str, Any]]:
    """Loss and rewards in the first and in the last third of the steps, with intervals over steps."""
    rows, found = record.training(), {}
    rewards = sorted(key for row in rows[:1] for key in row if key.startswith("rewards/") and not key.endswith("/std"))
    for name in ("loss", "reward", *rewards, "kl"):
        values = [row[name] for row in rows if row.get(name) is not None]
        third = len(values) // 3
        if third:
            found[name] = dict(zip(THIRDS, (over(values[:third]), over(values[-third:])), strict=True))
    return found


def probes(record: RunFolder, family: str) -> list[dict[str, Any]]:
    """One row per probe: the task, and the heads of both rules."""
    history = HeadHistory.from_run(record, family)
    circuit = HeadHistory.from_run(record, family, rule="circuit")
    scalars = {row["step"]: row for row in record.scalars()}
    events = [e for e in history.events if e.status != "pending"]
    rows = []
    for at, step in enumerate(history.steps):
        logged, changed = scalars[step], history.strengthened[at] | history.weakened[at]
        rows.append(
            {
                "step": step,
                "accuracy": logged.get(f"{family}/accuracy"),
                "gap": logged.get(f"{family}/metric_gap"),
                "kl": logged.get(f"{family}/kl_from_base"),
                "changed": int(changed.sum()),
                "strengthened": int(history.strengthened[at].sum()),
                "active": int(history.active[at].sum()),
                "newly_active": history.newly_active()[at],
                "events": sum(e.step == step for e in events),
                "paper_active": int(circuit.active[at].sum()),
                "paper_newly_active": circuit.newly_active()[at],
                "paper_turnover": circuit.turnover()[at],
                "paper_by_chance": logged.get(f"{family}/circuit/membership_changes_by_chance"),
            }
        )
    return rows


def coupled(record: RunFolder, family: str) -> dict[str, Any] | None:
    """The coupling of newly active heads with the reward at the last probe: correlation, lag, p."""
    last = record.scalars()[-1]
    before = f"{family}/coupling/"
    found = {key.removeprefix(before): value for key, value in last.items() if key.startswith(before)}
    return found or None


def read(folder: Path) -> dict[str, Any]:
    """The summary of one run."""
    record = RunFolder.open(folder)
    return {
        "name": folder.resolve().name,
        "trainer": record.manifest["trainer"],
        "training": training(record),
        "families": {family: probes(record, family) for family in record.families},
        "coupling": {family: coupled(record, family) for family in record.families},
    }


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def spread(found: dict[str, Any], digits: int = 2) -> str:
    """`0.12 +- 0.03`."""
    half = f" ± {found['half']:.{digits}f}" if found["half"] is not None else ""
    return f"{number(found['mean'], digits)}{half}"


def text(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: each run, then the seeds together."""
    lines: list[str] = []
    for run in runs:
        lines += [f"## {run['name']} ({run['trainer']})", "", f"| | {' | '.join(THIRDS)} |", "| --- | --- | --- |"]
        lines += [
            f"| {name} | {' | '.join(spread(at[third], 3) for third in THIRDS)} |"
            for name, at in run["training"].items()
        ]
        for family, rows in run["families"].items():
            columns = list(rows[0])
            lines += ["", f"{family}:", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
            for row in rows:
                cells = (number(v) if isinstance(v, float) or v is None else str(v) for v in row.values())
                lines.append(f"| {' | '.join(cells)} |")
            if run["coupling"][family]:
                lines += ["", f"coupling with the reward: {json.dumps(run['coupling'][family])}"]
        lines.append("")
    for trainer in dict.fromkeys(run["trainer"] for run in runs):
        mine = [run for run in runs if run["trainer"] == trainer]
        if len(mine) < 2:
            continue
        lines += [f"## {trainer}, {len(mine)} seeds: mean ± 95 % interval over seeds, at the last probe", ""]
        for name in mine[0]["training"]:
            thirds = [over(run["training"][name][third]["mean"] for run in mine) for third in THIRDS]
            lines.append(f"| {name} | {' | '.join(spread(third, 3) for third in thirds)} |")
        for family in mine[0]["families"]:
            last = [run["families"][family][-1] for run in mine]
            lines += [
                f"| {family}: {key} | {spread(over(row[key] for row in last))} |" for key in last[0] if key != "step"
            ]
    return "\n".join(lines)


def main() -> None:
    """Print the summary and, with --json, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = [read(folder) for folder in options.folders]
    print(text(runs))
    if options.json is not None:
        options.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
