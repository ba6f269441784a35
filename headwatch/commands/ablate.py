"""`headwatch ablate MODEL`: switch heads off or scale them, and measure what the model then solves."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from headwatch.commands.loading import dtype_and_device, model_name
from headwatch.commands.options import add_command, at_least_one, at_least_zero, finite, in_existing_folder, one_of
from headwatch.commands.sampling_options import (
    HARNESS,
    add_sampling_options,
    check_engine,
    plan,
    plan_lines,
    sampling_settings,
    split_suites,
)
from headwatch.errors import UserError

WHICH = ("emerged", "retained", "dropped", "pruned", "active", "base")  # of headwatch.evaluation.head_groups


def add(commands: Any) -> None:
    """Declare the command."""
    ablate = add_command(
        commands,
        "ablate",
        run,
        "switch heads off or scale them, against no intervention and against random heads; resumable",
        "headwatch ablate outputs/grpo/checkpoint-500 --run outputs/grpo --which emerged base --suite gsm8k --top 10",
    )
    ablate.add_argument("model", metavar="MODEL", help="model folder, adapter folder, or a name on the Hub")
    ablate.add_argument("--heads", nargs="+", default=None, metavar="HEAD", help="heads, such as L17.H3,L20.H0")
    ablate.add_argument(
        "--run",
        dest="run_folder",
        default=None,
        metavar="FOLDER",
        help="take the heads of a recorded run, and keep the result in it for its report",
    )
    ablate.add_argument(
        "--which", nargs="+", type=one_of(WHICH), default=["emerged"], help=f"of that run: {', '.join(WHICH)} (emerged)"
    )
    ablate.add_argument("--family", default=None, help="probe family of that run (its first)")
    ablate.add_argument("--rule", type=one_of(("evidence", "circuit")), default="evidence", help="evidence or circuit")
    ablate.add_argument("--circuit", default=None, metavar="FILE", help="take the heads of a circuit file")
    ablate.add_argument("--top", type=at_least_one, default=None, help="only the strongest so many heads of each group")
    ablate.add_argument(
        "--factor", nargs="+", type=finite, default=[0.0], help="0 switches off; several give an arm each (0)"
    )
    ablate.add_argument(
        "--random", type=at_least_zero, default=5, metavar="N", help="random sets per group, matched in layer (5)"
    )
    add_sampling_options(ablate)
    ablate.add_argument(
        "--out",
        type=in_existing_folder,
        default=None,
        metavar="DIR",
        help="folder for answers (headwatch-ablation/MODEL)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    name = model_name(arguments.model)
    own, tasks = split_suites(arguments.suite)
    from headwatch.commands.run_defaults import refuse_other_shape
    from headwatch.model.head_names import parse_heads
    from headwatch.record.after import keep_result, run_to_keep_in

    run_folder = run_to_keep_in(arguments.run_folder)
    parse_heads(" ".join(arguments.heads or []), None, "--heads")
    if arguments.circuit is not None and not Path(arguments.circuit).is_file():
        raise UserError(f"--circuit {arguments.circuit}: there is no such file")
    if not arguments.dry_run:
        check_engine(arguments, tasks)
    from headwatch.evaluation.ablation import Arm, compare_tasks, make_arms, run_arms, table, unsolved
    from headwatch.evaluation.head_groups import names_of

    shape = _shape(name, arguments.base, needed=not arguments.dry_run)
    if shape is not None:
        refuse_other_shape(run_folder, arguments.model, shape)
    groups = _groups(arguments, shape)
    if arguments.dry_run:
        arms_of_plan = 1 + len(groups) * len(set(arguments.factor)) * (1 + arguments.random)
        rows = plan(arguments, arms_of_plan)
        heads = {group: names_of(found) for group, found in groups.items()}
        if arguments.json:
            print(json.dumps({"model": arguments.model, "heads": heads, "plan": rows}))
            return 0
        print("\n".join(f"{group}: {len(found)} head(s): {' '.join(found)}" for group, found in heads.items()))
        print("\n".join(plan_lines(rows)))
        return 0
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from headwatch.evaluation.benchmarks import load_problems, suite_name
    from headwatch.evaluation.evaluator import Evaluator
    from headwatch.evaluation.run import Result
    from headwatch.evaluation.to_wandb import log_results
    from headwatch.model.loading import Loader
    from headwatch.report.ablation_page import write_ablation_page

    assert shape is not None
    arms = make_arms(groups, list(dict.fromkeys(arguments.factor)), shape, arguments.random, arguments.seed)
    problems = {suite: load_problems(suite, arguments.n_problems, arguments.seed) for suite in own}
    evaluator = Evaluator(
        name,
        sampling_settings(arguments),
        Loader(dtype, device),
        base=arguments.base,
        tokenizer=arguments.tokenizer,
        engine=arguments.engine,
    )
    out = Path(arguments.out) if arguments.out else Path("headwatch-ablation") / Path(name).name
    found: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for suite in own:
        key = suite_name(suite)

        def evaluated(arm: Arm, suite: str = suite, key: str = key) -> Result:
            result = evaluator.evaluate(problems[suite], out / key / arm.name, arm.heads, f"{key}, {arm.label}")
            if not arm.heads and not result.accuracy.any():
                print(f"headwatch: {unsolved(key, result)}", file=sys.stderr)
            return result

        found[key] = run_arms(arms, evaluated)
        if not arguments.json:
            print(f"{key}: {len(problems[suite])} problems, {arguments.samples} samples")
            print("\n".join(table(found[key])))
    for task in tasks:
        folder = out / "lm_eval" / Path(task).stem
        by_arm = {arm.name: evaluator.harness(task, arguments.n_problems, folder / arm.name, arm.heads) for arm in arms}
        numbers[f"{HARNESS}{task}"] = {arm: of_task.numbers for arm, of_task in by_arm.items()}
        compared = {f"{HARNESS}{metric}": rows for metric, rows in compare_tasks(arms, by_arm).items()}
        found |= compared
        if not arguments.json:
            print(f"{HARNESS}{task}, numbers of each arm:")
            for arm in arms:
                print(f"  {arm.label}: {json.dumps(numbers[f'{HARNESS}{task}'][arm.name])}")
            for key, of_metric in compared.items():
                print("\n".join([f"{key}: {of_metric['arms'][0]['problems']} documents", *table(of_metric)]))
    result = {
        "model": arguments.model,
        "groups": {group: names_of(heads) for group, heads in groups.items()},
        "suites": found,
        "harness": numbers,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "ablation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = write_ablation_page(result, out)
    if run_folder is not None:
        keep_result(run_folder, "ablation", result)
    if arguments.report_to == "wandb":
        log_results(
            found, f"ablate {Path(name).name}", None if run_folder is None else run_folder.manifest.get("wandb")
        )
    print(json.dumps({**result, "out": str(out), "page": str(page)}) if arguments.json else f"page: {page}")
    return 0


def _groups(arguments: argparse.Namespace, shape: tuple[int, int] | None) -> dict[str, list[tuple[int, int]]]:
    """Name -> heads, from --heads, --run and --circuit; several may be given."""
    from headwatch.evaluation.head_groups import heads_of_circuit, heads_of_run
    from headwatch.model.head_names import parse_heads

    groups: dict[str, list[tuple[int, int]]] = {}
    if arguments.heads is not None:
        groups["heads"] = parse_heads(" ".join(arguments.heads), shape, "--heads")
    if arguments.run_folder is not None:
        for which in dict.fromkeys(arguments.which):
            groups[which] = heads_of_run(arguments.run_folder, which, arguments.family, arguments.rule, arguments.top)
    if arguments.circuit is not None:
        groups["circuit"] = heads_of_circuit(arguments.circuit, arguments.top)
    if not groups:
        raise UserError("no heads: give --heads L1.H2,..., --run FOLDER (with --which), or --circuit FILE")
    for group, heads in groups.items():
        if not heads:
            raise UserError(f"--{group}: no head named")
        parse_heads(heads, shape, f"--{group}")
    return groups


def _shape(name: str, base: str | None, needed: bool) -> tuple[int, int] | None:
    """(L, H) from the model's configuration; None where it is not at hand and not needed."""
    from headwatch.model.loading import read_shape

    try:
        return read_shape(name, base, download=needed)
    except UserError:
        if needed:
            raise
        return None
