"""`headwatch workspace ENTITY/PROJECT`: save a W&B view."""

import argparse
import difflib
import json
import sys
from typing import Any

from headwatch.commands.options import FAMILIES, add_command
from headwatch.errors import UserError


def add(commands: Any) -> None:
    """Declare the command."""
    workspace = add_command(
        commands,
        "workspace",
        run,
        "save a W&B view with everything that headwatch logs: heads, cohorts, reward, noise, cost",
        "headwatch workspace my-team/grpo --families carry addition --dry-run",
    )
    workspace.add_argument("target", metavar="ENTITY/PROJECT", help="W&B project in which the view is saved")
    workspace.add_argument(
        "--families", nargs="+", default=[], help="draw one cohort chart per family (one chart for all)"
    )
    workspace.add_argument("--name", default="headwatch", help="name of the view (headwatch)")
    workspace.add_argument("--dry-run", action="store_true", help="build, check and print the view; send nothing")
    workspace.add_argument("--json", action="store_true", help="print the plan and the URL as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from headwatch.sinks import wandb_workspace as workspace

    entity, project = workspace.parse_target(arguments.target)
    families = tuple(arguments.families)
    for name in set(families) - {*FAMILIES, "openers"}:
        if close := difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.8):
            raise UserError(f"--families {name}: did you mean {close[0]}?")
        print(f"headwatch: {name} is no built-in family: its charts fill if your own pairs have it", file=sys.stderr)
    view = workspace.build(entity, project, families, arguments.name)
    url = None if arguments.dry_run else workspace.save(view)
    if arguments.json:
        print(json.dumps({"target": arguments.target, "url": url, "sections": workspace.plan_json(families)}))
        return 0
    for section in workspace.plan(families):
        print(section.name)
        for panel in section.panels:
            print(f"  {panel.title:<46} {panel.kind:<12} {panel.pattern}")
    print(
        f"\nNothing was sent. Without --dry-run, the view is saved to {arguments.target}."
        if url is None
        else f"\n{url}"
    )
    return 0
