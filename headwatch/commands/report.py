"""`headwatch report FOLDER ...`: write one page for one or several runs."""

import argparse
import json
from typing import Any

from headwatch.commands.options import add_command, in_existing_folder


def add(commands: Any) -> None:
    """Declare the command."""
    report = add_command(
        commands,
        "report",
        run,
        "write one self-contained HTML page for one or several runs, and SVG figures for a paper",
        "headwatch report outputs/sft outputs/grpo --out report.html --figures figures",
    )
    report.add_argument(
        "runs",
        nargs="+",
        metavar="FOLDER",
        help="a trainer's output_dir, the headwatch/ folder in it, or a folder that holds several of them",
    )
    report.add_argument(
        "--out",
        type=in_existing_folder,
        default=None,
        help="file to write (report.html in the first FOLDER's run folder)",
    )
    report.add_argument(
        "--figures",
        type=in_existing_folder,
        default=None,
        metavar="DIR",
        help="also write the figures as SVG files to DIR",
    )
    report.add_argument("--json", action="store_true", help="print the paths as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from headwatch.record.find_runs import find_runs
    from headwatch.report.html import write_report

    found = [find_runs(folder) for folder in arguments.runs]
    runs = [run for runs_of_folder in found for run in runs_of_folder]
    first = arguments.runs[0] if len(found[0]) > 1 else None  # one page for several runs: next to them
    written: dict[str, Any] = {"report": str(write_report(runs, arguments.out or first))}
    if arguments.figures is not None:
        from headwatch.report.svg import write_figures

        written["figures"] = [str(figure) for figure in write_figures(runs, arguments.figures)]
    print(json.dumps(written) if arguments.json else "\n".join([written["report"], *written.get("figures", [])]))
    return 0
