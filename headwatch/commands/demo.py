"""`headwatch demo`: train a small model on this machine and write the report."""

import argparse
import json
from pathlib import Path
from typing import Any

from headwatch.commands.loading import require
from headwatch.commands.options import add_command, in_existing_folder, seed_number


def add(commands: Any) -> None:
    """Declare the command."""
    demo = add_command(
        commands,
        "demo",
        run,
        "train a small model by SFT and by GRPO on this machine, with the callback, and write the report",
        "headwatch demo --out my-demo --seed 1",
    )
    demo.add_argument(
        "--out", type=in_existing_folder, default="headwatch-demo", help="folder for models, run folders and the report"
    )
    demo.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="same seed, same result on the same machine; on another machine other heads may emerge (0)",
    )
    demo.add_argument("--quick", action="store_true", help="a test of a few seconds; too short to show anything")
    demo.add_argument("--json", action="store_true", help="print the report's path as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    require("trl", "the demo")
    from headwatch.demo.run import run_demo

    lines: list[str] = []
    result = run_demo(Path(arguments.out), seed=arguments.seed, quick=arguments.quick, say=lines.append)
    if not arguments.json:
        print("\n".join(["", *lines]))
    print(json.dumps({"report": str(result), "results": lines}) if arguments.json else f"\nOpen the report: {result}")
    return 0
