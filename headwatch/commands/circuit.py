"""`headwatch circuit MODEL`: select each family's circuit, evaluate its faithfulness, draw it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from headwatch.commands.loading import dtype_and_device, load_pretrained, model_name, move_to, probes_argument
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


def add(commands: Any) -> None:
    """Declare the command."""
    circuit = add_command(
        commands,
        "circuit",
        run,
        "select the circuit of each probe family, measure its faithfulness against random circuits, and draw it",
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
    add_pair_options(circuit, ("addition", "recall"))
    add_path_options(circuit)
    add_batch_option(circuit)
    add_model_options(circuit)
    add_run_options(circuit)
    circuit.add_argument("--json", action="store_true", help="print the curves as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from headwatch.record.after import keep_result, run_to_keep_in

    run_folder = run_to_keep_in(arguments.run_folder)
    wanted, name = probes_argument(arguments.probes), model_name(arguments.model)
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from headwatch.analysis.circuit_report import CircuitOptions, family_circuits, write_circuits
    from headwatch.attribution.settings import ScoringSettings
    from headwatch.probes import ProbeSet
    from headwatch.sinks.wandb_after import log_circuits

    scoring = ScoringSettings(
        arguments.metric,
        arguments.steps,
        arguments.alphas,
        edges=True,
        batch_size=arguments.batch_size,
        kernels=arguments.kernels,
    )
    options = CircuitOptions(
        by=arguments.rank,
        method=arguments.method,
        edges=arguments.edges,
        enough=arguments.faithful,
        controls=arguments.random,
        same_pairs=arguments.same_pairs,
        seed=arguments.seed,
    )
    tokenizer = load_pretrained(AutoTokenizer, name, None)
    probes = ProbeSet.resolve(wanted, tokenizer, n_pairs=arguments.pairs, seed=arguments.seed)
    model = move_to(load_pretrained(AutoModelForCausalLM, name, None, dtype=dtype), device)
    with tqdm(total=len(probes.family_names), unit="family", file=sys.stderr, disable=None) as bar:

        def progress(family: str, done: int, total: int) -> None:
            bar.n = probes.family_names.index(family) + done / total
            bar.set_postfix_str(f"{family}: {done} of {total} circuits")

        found = family_circuits(model, probes, scoring, options, progress)
    title = Path(name).name
    written = [] if arguments.out is None else write_circuits(found, model, Path(arguments.out), title)
    rows = [each.to_json() for each in found]
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


def _lines(found: dict[str, Any]) -> list[str]:
    """One family's table."""
    size = f"{found['edges']:,} of {found['real_edges']:,} edges, {len(found['heads'])} heads"
    areas = f"  CPR {found['cpr']:.3f}, CMD {found['cmd']:.3f}"
    if found["random_cpr"]:
        areas += f"; random circuits {_range(found['random_cpr'])} and {_range(found['random_cmd'])}"
    lines = [
        f"{found['family']}: circuit of {size}; selected on {found['selected_on']} pairs, evaluated on "
        f"{found['evaluated_on']}",
        areas,
        f"  {'edges':>9} {'heads':>6} {'faithfulness':>13} {'95 %':>16} {'random':>16}",
    ]
    for row in found["curve"]:
        interval = f"{row['lower']:.2f} to {row['upper']:.2f}"
        random = _range(row["random"]) if row["random"] else ""
        lines.append(f"  {row['edges']:>9,} {row['heads']:>6} {row['faithfulness']:>13.3f} {interval:>16} {random:>16}")
    top = ", ".join(f"{row['head']} {row['importance']:.0%}" for row in found["heads"][:8])
    return [*lines, f"  importance: {top}"]


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
