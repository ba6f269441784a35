"""The table of docs/reference/trainers.md: every trainer with and without the callback, on a CPU.

    python benchmarks/trainers.py [--write]

Every row is two trainings of 3 steps of a model of 30,000 parameters, in the trainer's own bf16, with dropout and
sampled completions.
"""

import argparse
import inspect
import logging
import sys
import tempfile
from pathlib import Path

from headwatch import RunFolder

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.all_trainers import OFF, TRAINERS, trained  # noqa: E402
from helpers.generated import replace_block  # noqa: E402
from helpers.tiny_trainers import same_weights, save_tiny_model, trained_weights  # noqa: E402

COLUMNS = ("trainer", "from", "weights as without the callback", "probes at steps", "status")


class LastWarning(logging.Handler):
    """Keeps the reason for which probing was turned off."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text between the parentheses."""
        text = record.getMessage()
        if "probing is off" in text:
            self.reason = text.partition("(")[2].partition(": model: ")[2].partition("; ")[0]


def row(name: str, model: Path, folder: Path) -> tuple[str, ...]:
    """One trainer, run twice."""
    warning = LastWarning()
    logging.getLogger("headwatch.callback").addHandler(warning)
    watched, plain = (trained(name, model, folder / str(watch), watch) for watch in (True, False))
    logging.getLogger("headwatch.callback").removeHandler(warning)
    same = same_weights(trained_weights(watched), trained_weights(plain))
    kind = type(watched)
    where = inspect.getmodule(kind)
    package = ".".join((where.__name__ if where else "").split(".")[: 3 if "experimental" in str(where) else 1])
    try:
        run = RunFolder.open(folder / "True")
        steps, status = ", ".join(map(str, run.steps)), str(run.manifest["status"])
    except ValueError:
        steps, status = "none", f"probing is off: {warning.reason}"
    return f"`{name}`", f"`{package}`", "bit-identical" if same else "**different**", steps, status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/reference/trainers.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_tiny_model(folder / "model")
        rows = [row(trainer, model, folder / trainer) for trainer in TRAINERS | OFF]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows))
    print(table)
    if arguments.write:
        replace_block(ROOT / "docs" / "reference" / "trainers.md", "trainers", table)


if __name__ == "__main__":
    main()
