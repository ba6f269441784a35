"""The tables of docs/reference/models.md: every entry of LAYOUTS against the naive reference, and what is refused.

    python benchmarks/models.py [TYPE ...] [--write]

Each type is a random model of transformers' own class, with its default configuration at reduced sizes (about 32 wide,
2 to 8 layers of 4 heads), in float64 and with eager attention: what `headwatch doctor` runs. Some minutes on one core.
"""

import argparse
import sys
from pathlib import Path

from headwatch.attribution.doctor import diagnose, entry
from headwatch.model.layouts import LAYOUTS, REFUSED

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.all_models import TYPES, small_model  # noqa: E402
from helpers.generated import replace_block  # noqa: E402

COLUMNS = ("`config.model_type`", "class", "differs from Llama in", "error", "stream check", "row sums")
PAGE = ROOT / "docs" / "reference" / "models.md"


def row(model_type: str) -> tuple[str, ...]:
    """One model type; an error ends the run."""
    model = small_model(model_type)
    best = diagnose(model).best
    if best.problem is not None or best.error is None:
        raise SystemExit(f"{model_type}: {best.problem}")
    own = entry(best.layout).removeprefix("Layout(").removesuffix(")")
    numbers = (f"{value:.0e}" for value in (best.error, best.stream, best.row_sums))
    return (f"`{model_type}`", f"`{type(model).__name__}`", f"`{own}`" if own else "", *numbers)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ("---",) * len(columns), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types (all)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/reference/models.md")
    arguments = parser.parse_args()
    rows = []
    for model_type in arguments.types or TYPES:
        rows.append(row(model_type))
        print(*rows[-1], flush=True)
    if arguments.write and not arguments.types:
        assert len(rows) == len(LAYOUTS)
        replace_block(PAGE, "models", table(COLUMNS, rows))
        refused = [(f"`{model_type}`", reason) for model_type, reason in sorted(REFUSED.items())]
        replace_block(PAGE, "refused", table(("`config.model_type`", "reason"), refused))


if __name__ == "__main__":
    main()
