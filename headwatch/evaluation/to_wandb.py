"""Results of benchmarks in W&B: summary values, and a table of the arms."""

from collections.abc import Mapping
from typing import Any

from headwatch.report.heads_off import arm_label
from headwatch.sinks.wandb_after import log_table, run_for_results

COLUMNS = ("suite", "arm", "heads", "pass@1", "low", "high", "difference", "p", "newly right", "newly wrong")


def log_results(
    suites: Mapping[str, Mapping[str, Any]], name: str, run: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Log results to the live W&B run, to the run that a training wrote, or to a new one.

    Args:
        suites: benchmark -> `Result.summary()`, or the arms of an ablation.
        name: of a new run.
        run: id, project and entity of a training's run, from its record.

    Returns:
        The summary values: headwatch/eval/SUITE/pass@k, and headwatch/ablate/SUITE/ARM.

    Raises:
        UserError: no run could be started.
    """
    values: dict[str, float] = {}
    rows = []
    for suite, found in suites.items():
        for k, passed in found.get("pass", {}).items():
            values[f"headwatch/eval/{suite}/pass@{k}"] = passed["value"]
        for arm in found.get("arms", []):
            values[f"headwatch/ablate/{suite}/{arm['arm']}"] = arm["pass1"]["value"]
            rows.append(_row(suite, arm))
    with run_for_results(name, run) as found_run:
        found_run.summary.update(values)
        if rows:
            log_table(found_run, "headwatch/ablate/arms", COLUMNS, rows)
    return values


def _row(suite: str, arm: Mapping[str, Any]) -> list[Any]:
    passed, other = arm["pass1"], arm.get("against_none")
    # The table can be sorted, so a random set names the group that it is matched to.
    label = arm_label(arm) + (f" ({arm['group']})" if arm["random"] is not None else "")
    row: list[Any] = [suite, label, " ".join(arm["heads"]), passed["value"], passed["low"], passed["high"]]
    if other is None:
        return [*row, None, None, None, None]
    changed = [len(other["newly_right"]), len(other["newly_wrong"])]
    return [*row, other["difference"]["value"], other["p_value"], *changed]
