"""`headwatch circuit MODEL`: select each family's circuit, evaluate its faithfulness, draw it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from headwatch.commands.loading import dtype_and_device, model_name, probes_argument
from headwatch.commands.options import add_command, at_least_one, at_least_zero, in_existing_folder, number, one_of
from headwatch.commands.watch_options import (
    add_batch_option,
    add_model_options,
    add_pair_options,
    add_path_options,
    add_run_options,
)

# Repeated from headwatch.circuits.selection, which imports numpy; a test compares them.
RANKINGS = ("mean_abs", "abs_mean", "mean", "stable")
METHODS = ("top", "greedy", "ratio")

FAMILIES = ("addition", "recall")  # without --probes and --run
PAIRS = 64
NO_SIGNAL = "the metric differs too little between clean and corrupted prompts for the numbers below"


def add(commands: Any) -> None:
    """Declare the command."""
    circuit = add_command(
        commands,
        "circuit",
        run,
        "select the circuit of each probe family, measure its faithfulness against random circuits, and draw it; with "
        "--out, families that are complete are not computed again",
        "headwatch circuit Qwen/Qwen2.5-Math-1.5B --probes addition --out circuits",
    )
    circuit.add_argument("model", metavar="MODEL", help="model folder, or a name on the Hugging Face Hub")
    circuit.add_argument(
        "--out",
        type=in_existing_folder,
        default=None,
        metavar="DIR",
        help="folder for circuits and drawings (nothing written)",
    )
    circuit.add_argument("--rank", type=one_of(RANKINGS), default="mean_abs", help=f"{', '.join(RANKINGS)} (mean_abs)")
    circuit.add_argument("--method", type=one_of(METHODS), default="top", help=f"{', '.join(METHODS)} (top)")
    circuit.add_argument("--edges", type=at_least_one, default=None, help="edges of the circuit (by --faithful)")
    circuit.add_argument(
        "--faithful",
        type=number(0.0, 1.0, includes_low=False),
        default=0.8,
        help="take the smallest circuit of the curve with this much (0.8)",
    )
    circuit.add_argument("--random", type=at_least_zero, default=5, metavar="N", help="random circuits per size (5)")
    circuit.add_argument(
        "--same-pairs", action="store_true", help="evaluate on the pairs that select, instead of every second pair"
    )
    add_pair_options(circuit, FAMILIES, of_run=True)
    add_path_options(circuit, of_run=True)
    add_batch_option(circuit)
    add_model_options(circuit)
    add_run_options(circuit)
    circuit.add_argument("--dry-run", "--dry_run", action="store_true", help="print the plan and exit")
    circuit.add_argument("--json", action="store_true", help="print the curves as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from headwatch.record.after import keep_result, run_to_keep_in

    run_folder = run_to_keep_in(arguments.run_folder)
    name = model_name(arguments.model)
    if arguments.run_folder is None:
        probes_argument(arguments.probes or FAMILIES)
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from headwatch.analysis.circuit_files import described, kept_circuit, write_circuit
    from headwatch.analysis.circuit_report import CircuitOptions, family_circuits
    from headwatch.analysis.faithfulness import SIZES
    from headwatch.attribution.settings import ScoringSettings
    from headwatch.commands.run_defaults import RunDefaults, refuse_other_shape
    from headwatch.model.loading import Loader, adapter_base, load_tokenizer, read_shape
    from headwatch.sinks.wandb_after import log_circuits

    defaults = RunDefaults(run_folder, arguments)
    if arguments.dry_run:
        return _print_plan(arguments, defaults.planned(FAMILIES, PAIRS), len(SIZES))
    refuse_other_shape(run_folder, arguments.model, read_shape(name))
    tokenizer = load_tokenizer(*filter(None, (name, adapter_base(name))))
    probes = defaults.probes(tokenizer, FAMILIES, PAIRS)
    scoring = {
        family: ScoringSettings(**path, edges=True, batch_size=arguments.batch_size, kernels=arguments.kernels)
        for family, path in defaults.path(probes.family_names).items()
    }
    options = CircuitOptions(
        by=arguments.rank,
        method=arguments.method,
        edges=arguments.edges,
        enough=arguments.faithful,
        controls=arguments.random,
        same_pairs=arguments.same_pairs,
        seed=defaults.seed,
    )
    defaults.print_notes()
    title, loaded = Path(name).name, None
    rows, written = [], []
    with tqdm(total=len(probes.family_names), unit="family", file=sys.stderr, disable=None) as bar:

        def progress(family: str, done: int, total: int) -> None:
            bar.n = probes.family_names.index(family) + done / total
            bar.set_postfix_str(f"{family}: {done} of {total} circuits")

        for family in probes.family_names:
            pairs, folder = probes.select(family), None if arguments.out is None else Path(arguments.out) / family
            about = described(name, dtype, pairs, scoring[family], options)
            row = None if folder is None else kept_circuit(folder, about)
            if row is None:
                bar.set_postfix_str(f"{family}: scoring {len(pairs)} pairs")
                loaded = Loader(dtype, device).model(name) if loaded is None else loaded
                (found,) = family_circuits(loaded, pairs, scoring[family], options, progress)
                row = found.to_json()
                if folder is not None:
                    write_circuit(found, loaded, folder, title, about)
            rows.append(row)
            written += [] if folder is None else sorted(folder.glob("[!.]*"))
    if run_folder is not None:
        written.append(keep_result(run_folder, "circuits", {"model": arguments.model, "families": rows}))
    if arguments.report_to == "wandb":
        log_circuits(arguments.model, rows, None if run_folder is None else run_folder.manifest.get("wandb"))
    if arguments.json:
        print(json.dumps({"model": arguments.model, "families": rows, "files": [str(path) for path in written]}))
        return 0
    for row in rows:
        print("\n".join(_lines(row)))
    for path in written:
        print(path)
    return 0


def _print_plan(arguments: argparse.Namespace, pairs: dict[str, int | None], sizes: int) -> int:
    """Print what would be scored and evaluated, without loading anything; returns the exit status."""
    circuits = sizes * (1 + arguments.random)
    rows: list[dict[str, Any]] = []
    for family, n in pairs.items():
        halves = (n, n) if n is None or arguments.same_pairs else (n - n // 2, n // 2)
        rows.append({"family": family, "selected_on": halves[0], "evaluated_on": halves[1], "circuits": circuits})
    if arguments.json:
        print(json.dumps({"model": arguments.model, "plan": rows}))
        return 0
    for row in rows:
        first, second = ("its" if row[key] is None else row[key] for key in ("selected_on", "evaluated_on"))
        print(
            f"{row['family']}: {first} pairs to select, {second} pairs to evaluate {circuits} circuits on "
            f"({sizes} sizes x (1 + {arguments.random} random)); a circuit costs two to three forward passes"
        )
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    """One family's table."""
    size = f"{found['edges']:,} of {found['real_edges']:,} edges, {len(found['heads'])} heads"
    areas = f"  CPR {found['cpr']:.3f}, CMD {found['cmd']:.3f}"
    if found["random_cpr"]:
        areas += f"; random circuits {_range(found['random_cpr'])} and {_range(found['random_cmd'])}"
    lines = [
        f"{found['family']}: circuit of {size}; selected on {found['selected_on']} pairs, evaluated on "
        f"{found['evaluated_on']}",
        *([] if found["signal"] == "ok" else [f"  {found['signal']}: {NO_SIGNAL}"]),
        areas,
        f"  {'edges':>9} {'heads':>6} {'faithfulness':>13} {'95 %':>16} {'random':>16}",
    ]
    for row in found["curve"]:
        interval = _range([row["lower"], row["upper"]])
        random = _range(row["random"]) if row["random"] else ""
        value = f"{_no_minus_zero(row['faithfulness'], 3):.3f}"
        lines.append(f"  {row['edges']:>9,} {row['heads']:>6} {value:>13} {interval:>16} {random:>16}".rstrip())
    top = ", ".join(f"{row['head']} {row['importance']:.0%}" for row in found["heads"][:8])
    return [*lines, f"  importance: {top}"]


def _range(values: list[float]) -> str:
    return " to ".join(f"{_no_minus_zero(value, 2):.2f}" for value in (min(values), max(values)))


def _no_minus_zero(value: float, digits: int) -> float:
    return round(value, digits) + 0.0
