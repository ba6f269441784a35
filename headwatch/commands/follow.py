"""`headwatch follow DIR`: score the checkpoints of a training that no callback can reach."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from headwatch.commands.loading import dtype_and_device
from headwatch.commands.options import add_command, at_least_one, in_existing_folder, number, one_of
from headwatch.commands.watch_options import (
    add_model_options,
    add_services_option,
    add_watch_options,
    report_to,
    watch_settings,
)
from headwatch.errors import NonFiniteError, UserError

# Repeated from headwatch.checkpoints.layouts; a test compares them.
LAYOUTS = ("transformers", "verl", "openrlhf", "prime-rl", "torchtitan")


def add(commands: Any) -> None:
    """Declare the command."""
    follow = add_command(
        commands,
        "follow",
        run,
        "score checkpoints as they appear in a folder, into the record that the callback would write",
        "headwatch follow checkpoints/my_run --base Qwen/Qwen2.5-1.5B --until-done",
    )
    follow.add_argument("folder", metavar="DIR", help="folder in which a trainer saves its checkpoints")
    follow.add_argument("--base", default=None, help="model before training, step 0 (of an adapter: its own base)")
    follow.add_argument("--until-done", action="store_true", help="wait for checkpoints until training is done")
    follow.add_argument("--every", type=at_least_one, default=1, help="score the steps that are multiples of it (1)")
    follow.add_argument("--last-step", type=at_least_one, default=None, help="training is done with this step's")
    follow.add_argument(
        "--patience",
        type=number(0.0),
        default=60.0,
        metavar="MINUTES",
        help="done after this long without a checkpoint (60)",
    )
    follow.add_argument(
        "--poll",
        type=number(0.0, includes_low=False),
        default=10.0,
        metavar="SECONDS",
        help="time between two looks (10)",
    )
    follow.add_argument(
        "--settled",
        type=number(0.0),
        default=30.0,
        metavar="SECONDS",
        help="time without a change after which files count as written, where the trainer leaves no marker (30)",
    )
    layout = follow.add_mutually_exclusive_group()
    layout.add_argument("--layout", type=one_of(LAYOUTS), default=None, help=f"{', '.join(LAYOUTS)} (found out)")
    layout.add_argument(
        "--pattern", default=None, metavar="REGEX", help=r"the checkpoints' paths in DIR, such as epoch/iter_(\d+)"
    )
    follow.add_argument("--tokenizer", default=None, help="name of the tokenizer (the base model's)")
    follow.add_argument("--log", default=None, metavar="FILE.jsonl", help='rows {"step": 10, "reward": 0.5, ...}')
    follow.add_argument(
        "--out", type=in_existing_folder, default=None, metavar="DIR", help="run folder to write (DIR/headwatch)"
    )
    add_services_option(follow)
    follow.add_argument("--no-report", action="store_true", help="write no report.html")
    add_watch_options(follow)
    add_model_options(follow)
    follow.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="print which checkpoints would be scored, and exit"
    )
    follow.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    folder = Path(arguments.folder).expanduser()
    if not folder.is_dir() and not arguments.until_done:
        raise UserError(f"{arguments.folder} is not a folder: give the folder that holds the checkpoints")
    from headwatch.checkpoints.layouts import LAYOUTS as KNOWN
    from headwatch.checkpoints.layouts import custom_layout, require_checkpoints

    layout = custom_layout(arguments.pattern) if arguments.pattern else KNOWN.get(arguments.layout)
    if not arguments.until_done:
        require_checkpoints(folder, layout)
    if arguments.log is not None and not arguments.until_done and not Path(arguments.log).is_file():
        raise UserError(f"--log {arguments.log}: there is no such file")
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from headwatch.checkpoints.follow import Follower, FollowOptions
    from headwatch.model.loading import Loader
    from headwatch.record.run_folder import RunFolder
    from headwatch.report.html import write_report

    pages: list[Path] = []

    def report(run_folder: RunFolder) -> None:
        pages[:] = [write_report(run_folder)]

    options = FollowOptions(
        folder=folder,
        base=arguments.base,
        layout=layout,
        tokenizer=arguments.tokenizer,
        log=Path(arguments.log) if arguments.log else None,
        until_done=arguments.until_done,
        last_step=arguments.last_step,
        patience=60.0 * arguments.patience,
        poll=arguments.poll,
        settled=arguments.settled,
    )
    settings = watch_settings(arguments, every=arguments.every, **report_to(arguments.report_to))
    out = Path(arguments.out) if arguments.out else folder / "headwatch"
    say = (lambda line: print(line, file=sys.stderr, flush=True)) if arguments.json else _say
    follower = Follower(options, settings, out, Loader(dtype, device), say, None if arguments.no_report else report)
    if arguments.dry_run:
        plan = follower.plan()
        print(json.dumps(plan) if arguments.json else "\n".join(_plan_lines(plan)))
        return 0
    try:
        result = follower.run()
    except NonFiniteError as error:
        raise UserError(f"{error}: the training has diverged; the record in {out} ends before it") from error
    if not arguments.no_report:
        report(RunFolder.open(result.run))
    found = {
        "run": str(result.run),
        "report": str(pages[0]) if pages else None,
        **{name: getattr(result, name) for name in ("steps", "scored", "skipped", "waiting", "done")},
    }
    print(json.dumps(found) if arguments.json else f"{len(result.steps)} probes in {result.run}")
    return 0


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    base = plan["base"] or "missing: give --base"
    lines = [f"layout: {plan['layout']}; base, step 0: {base}; record: {plan['run']}"]
    return lines + [f"step {row['step']}: {row['checkpoint']}: {row['state']}" for row in plan["checkpoints"]]


def _say(line: str) -> None:
    print(line, flush=True)
