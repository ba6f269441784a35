"""Results of commands after a training, in W&B: numbers in the summary; figures and tables without automatic panels.

The run is the live one, that of the training (its id is in the record), or a new one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from headwatch.circuits.curve_drawing import curve_figure
from headwatch.errors import UserError
from headwatch.io.plain_json import plain
from headwatch.sinks.base import PREFIX
from headwatch.sinks.wandb_run import existing_run, finish_run, start_run

EXIT_TIMEOUT_S = 60.0


@contextmanager
def run_for_results(name: str, run: Mapping[str, Any] | None) -> Iterator[Any]:
    """The W&B run that takes results; finished at the end of the block unless it was live before.

    Args:
        name: of a new run.
        run: id, project and entity of a training's run, from its record.

    Raises:
        UserError: no run could be started.
    """
    live, given = existing_run(), run or {}
    found = live or start_run(given.get("project"), name, None, given.get("id"), given.get("entity"))
    if found is None:
        raise UserError("--report-to wandb: no W&B run could be started; leave it out")
    try:
        yield found
    finally:
        if live is None:
            finish_run(found, EXIT_TIMEOUT_S)


def log_hidden(run: Any, media: Mapping[str, Any]) -> None:
    """Log tables and figures by their full names, without a panel of their own."""
    for key in media:
        run.define_metric(key, hidden=True)
    run.log(dict(media))


def log_circuits(model: str, families: Sequence[Mapping[str, Any]], run: Mapping[str, Any] | None = None) -> None:
    """Log circuits: headwatch/circuit/FAMILY/cpr, cmd, random_cpr, random_cmd, edges, heads, and the curve.

    Args:
        model: name of the model, for the title and a new run.
        families: `FamilyCircuit.to_json()` of each family.
        run: see `run_for_results`.
    """
    import wandb

    with run_for_results(f"circuit {model}", run) as found:
        values: dict[str, float] = {}
        figures: dict[str, Any] = {}
        for family in families:
            start = f"{PREFIX}circuit/{family['family']}/"
            values |= {start + key: family[key] for key in ("cpr", "cmd", "edges")}
            values[start + "heads"] = len(family["heads"])
            for key in ("random_cpr", "random_cmd"):
                if family[key]:
                    values[start + key] = sum(family[key]) / len(family[key])
            figures[start + "curve"] = wandb.Plotly(
                plotly_figure(curve_figure(dict(family), f"{model}, {family['family']}"))
            )
        found.summary.update(values)
        log_hidden(found, figures)


def log_roles(model: str, rows: Sequence[Mapping[str, Any]], run: Mapping[str, Any] | None = None) -> None:
    """Log the measures of every head as the table headwatch/roles/heads; see `log_circuits`."""
    import wandb

    columns: list[str | int] = list(rows[0])
    table = wandb.Table(columns=columns, data=[[row[str(name)] for name in columns] for row in rows])
    with run_for_results(f"roles {model}", run) as found:
        log_hidden(found, {f"{PREFIX}roles/heads": table})


def log_table(run: Any, key: str, columns: Iterable[str], rows: Sequence[Sequence[Any]]) -> None:
    """Log a table without a panel of its own."""
    import wandb

    log_hidden(run, {key: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})


def plotly_figure(figure: Mapping[str, Any]) -> Any:
    """A plotly figure of plain lists: plotly >= 6 writes numpy arrays as base64, which W&B has shown empty."""
    import plotly.graph_objects as go

    return go.Figure(plain(figure, 4))
