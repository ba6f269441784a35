"""`headwatch evaluate MODEL`: sampled answers to benchmarks, graded, with intervals."""

import argparse
import json
from pathlib import Path
from typing import Any

from headwatch.commands.loading import dtype_and_device, model_name
from headwatch.commands.options import add_command, in_existing_folder
from headwatch.commands.sampling_options import (
    HARNESS,
    add_sampling_options,
    check_engine,
    plan,
    plan_lines,
    sampling_settings,
    split_suites,
)


def add(commands: Any) -> None:
    """Declare the command."""
    evaluate = add_command(
        commands,
        "evaluate",
        run,
        "sample answers to benchmarks, grade them, and print pass@k with intervals; resumable",
        "headwatch evaluate Qwen/Qwen2.5-Math-1.5B --suite aime24 amc math500 --samples 16",
    )
    evaluate.add_argument("model", metavar="MODEL", help="model folder, adapter folder, or a name on the Hub")
    add_sampling_options(evaluate)
    evaluate.add_argument(
        "--run",
        dest="run_folder",
        default=None,
        metavar="FOLDER",
        help="keep the result in this recorded run, so that its report shows it",
    )
    evaluate.add_argument(
        "--out",
        type=in_existing_folder,
        default=None,
        metavar="DIR",
        help="folder for answers (headwatch-evaluation/MODEL)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    name = model_name(arguments.model)
    own, tasks = split_suites(arguments.suite)
    from headwatch.record.after import keep_result, run_to_keep_in

    run_folder = run_to_keep_in(arguments.run_folder)
    if not arguments.dry_run:
        check_engine(arguments, tasks)
    rows = plan(arguments)
    if arguments.dry_run:
        print(json.dumps({"model": arguments.model, "plan": rows}) if arguments.json else "\n".join(plan_lines(rows)))
        return 0
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from headwatch.commands.run_defaults import refuse_other_shape
    from headwatch.evaluation.benchmarks import load_problems, suite_name
    from headwatch.evaluation.evaluator import Evaluator
    from headwatch.evaluation.run import Result
    from headwatch.evaluation.to_wandb import log_results
    from headwatch.model.loading import Loader, read_shape

    if run_folder is not None:
        refuse_other_shape(run_folder, arguments.model, read_shape(name, arguments.base))
    settings = sampling_settings(arguments)
    problems = {suite: load_problems(suite, arguments.n_problems, arguments.seed) for suite in own}
    evaluator = Evaluator(
        name,
        settings,
        Loader(dtype, device),
        base=arguments.base,
        tokenizer=arguments.tokenizer,
        engine=arguments.engine,
    )
    out = Path(arguments.out) if arguments.out else Path("headwatch-evaluation") / Path(name).name
    found: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    results: dict[str, Result] = {}
    for suite in own:
        key = suite_name(suite)
        results[key] = evaluator.evaluate(problems[suite], out / key, label=key)
        found[key] = results[key].summary()
        (out / key / "result.json").write_text(json.dumps(found[key], indent=1) + "\n", encoding="utf-8")
    for task in tasks:
        folder = out / "lm_eval" / Path(task).stem
        of_task = evaluator.harness(task, arguments.n_problems, folder)
        numbers[f"{HARNESS}{task}"] = of_task.numbers
        for metric, result in of_task.results().items():
            results[f"{HARNESS}{metric}"] = result
            found[f"{HARNESS}{metric}"] = result.summary()
    if run_folder is not None:
        keep_result(run_folder, "evaluation", {"model": arguments.model, "suites": found})
    if arguments.report_to == "wandb":
        of_training = None if run_folder is None else run_folder.manifest.get("wandb")
        log_results(found, f"evaluate {Path(name).name}", of_training)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "out": str(out), "suites": found, "harness": numbers}))
        return 0
    for key, result in results.items():
        print(f"{key}: {_line(result)}")
    for task, row in numbers.items():
        print(f"{task}: {json.dumps(row)}")
    print(f"answers: {out}")
    return 0


def _line(result: Any) -> str:
    n = result.grades.shape[1]
    parts = [f"pass@1 {result.pass_at(1)} %"]
    if n > 1:
        parts.append(f"pass@{n} {result.pass_at(n)} %")
    parts.append(f"{len(result.problems)} problems x {n} samples")
    if result.unfinished:
        parts.append(f"{result.unfinished:.0%} of the answers reached the longest length")
    if result.ungraded:
        parts.append(f"{result.ungraded} problems without a parseable answer left out")
    return ", ".join(parts)
