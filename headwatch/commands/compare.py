"""`headwatch compare BASE POST ...`: the heads of post-trained models against their base."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from headwatch.commands.loading import dtype_and_device, model_name
from headwatch.commands.options import add_command, at_least_one, in_existing_folder, number, one_of
from headwatch.commands.watch_options import (
    add_model_options,
    add_services_option,
    add_watch_options,
    report_to,
    watch_settings,
)
from headwatch.errors import UserError

# Repeated from headwatch.analysis.event_patching, which imports torch; a test compares them.
PATCHING = ("events", "all", "none")


def add(commands: Any) -> None:
    """Declare the command."""
    compare = add_command(
        commands,
        "compare",
        run,
        "find the heads that emerged, stayed and were dropped between a base model and models trained from it",
        "headwatch compare Qwen/Qwen2.5-Math-1.5B outputs/sft outputs/grpo --probes addition recall --out compared",
    )
    compare.add_argument("base", metavar="BASE", help="model before training: a folder, an adapter, a name on the Hub")
    compare.add_argument("posts", nargs="*", metavar="POST", help="models after training, of the same shape")
    add_watch_options(compare)
    compare.add_argument(
        "--openers-from",
        type=one_of(("both", "base")),
        default="both",
        help="both: POST samples the reasoning openers and BASE the direct ones (the paper); base: BASE both (both)",
    )
    compare.add_argument(
        "--think",
        type=one_of(("on", "off", "both")),
        default=None,
        help="on, off: pairs in that variant of the chat template; both: each model's thinking on against off",
    )
    compare.add_argument(
        "--patching",
        type=one_of(PATCHING),
        default="events",
        help="exact patching of the heads that changed, and of BASE's strongest heads (events), of all BASE's heads: "
        "slow (all), or none",
    )
    compare.add_argument(
        "--q",
        type=number(0.0, 1.0, includes_low=False),
        default=0.01,
        help="false-discovery level over the heads (0.01)",
    )
    compare.add_argument("--top", type=at_least_one, default=10, help="number of heads to print of each kind (10)")
    compare.add_argument("--tokenizer", default=None, help="name of the tokenizer (BASE's)")
    add_services_option(compare)
    add_model_options(compare)
    compare.add_argument(
        "--out",
        type=in_existing_folder,
        default="headwatch-compare",
        metavar="DIR",
        help="folder of the records and the page (headwatch-compare)",
    )
    compare.add_argument("--dry-run", "--dry_run", action="store_true", help="print the plan and exit")
    compare.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if not arguments.posts and arguments.think != "both":
        raise UserError("name at least one model to compare with BASE, or --think both for one model alone")
    base, *posts = (model_name(name) for name in (arguments.base, *arguments.posts))
    from headwatch.stats import EvidenceSettings

    # There is one change to test, so no correction over probes is needed and nothing is left pending.
    evidence = EvidenceSettings(q=arguments.q, confirm="none")
    settings = watch_settings(
        arguments, every=1, evidence=evidence, patching=arguments.patching, **report_to(arguments.report_to)
    )
    from headwatch.checkpoints.compare import CompareOptions, Comparer, refuse_other_shapes

    out = Path(arguments.out)
    options = CompareOptions(base, posts, out, arguments.think, arguments.openers_from, arguments.tokenizer)
    families = arguments.probes or ["the families with signal on BASE"]
    if arguments.dry_run:
        refuse_other_shapes(options, download=False)
        plan = {
            "models": [base, *posts],
            "probes": arguments.probes,
            "pairs_per_family": arguments.pairs,
            "think": arguments.think,
            "passes": 2 * (1 + len(posts)) if arguments.think == "both" else 1 + len(posts),
        }
        if arguments.json:
            print(json.dumps(plan))
        else:
            print(
                f"{len(plan['models'])} models, {plan['passes']} passes over {arguments.pairs} pairs of each of "
                f"{', '.join(families)}; records in {arguments.out}"
            )
        return 0
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from headwatch.checkpoints.compare import CompareOptions
    from headwatch.checkpoints.comparison import lines_of
    from headwatch.model.loading import Loader
    from headwatch.monitor.console import no_lines
    from headwatch.record.after import keep_result
    from headwatch.report.html import write_report

    say = (lambda line: print(line, file=sys.stderr, flush=True)) if arguments.json else print
    comparer = Comparer(options, settings, Loader(dtype, device), say)
    with no_lines():
        runs = comparer.run()
    found = comparer.results(runs)
    for name, run_folder in runs.items():
        families = {family: one["components"] for family, one in found[name].items() if "components" in one}
        keep_result(run_folder, "components", {"model": name, "families": families})
    page = write_report(list(runs.values()), out)
    result = {
        "base": arguments.base,
        "runs": {name: str(run.path) for name, run in runs.items()},
        "report": str(page),
        "comparisons": found,
    }
    (out / "compare.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(result))
        return 0
    for name, one in found.items():
        print("\n".join([f"{name}:", *lines_of(one, arguments.top)]))
    print(f"report: {page}")
    return 0
