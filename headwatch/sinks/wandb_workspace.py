"""`headwatch workspace`: a saved W&B view of everything that the callback logs, by the wandb-workspaces package.

Panels are plain data here and select scalars by regular expressions, so that they fit any families and cohorts. The
package converts and validates them offline; only `save` connects to W&B.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from headwatch.errors import UserError
from headwatch.sinks.base import PREFIX, STEP_KEY

NAME = "headwatch"
FAMILY = "[^/]+"  # matches any family
CIRCUIT = f"{PREFIX}{FAMILY}/circuit/"


@dataclass(frozen=True)
class Panel:
    """One chart: all scalars whose full name matches `pattern`, over the training step."""

    title: str
    pattern: str
    kind: Literal["line", "stacked-area"] = "line"


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    name: str
    panels: tuple[Panel, ...]


def plan(families: tuple[str, ...] = ()) -> list[Section]:
    """Sections of the view; with `families`, one cohort chart per family instead of one for all."""
    of_any = PREFIX + FAMILY + "/"
    cohorts = (
        [
            Panel(f"Cohorts by first emergence: {f}", f"{PREFIX}{re.escape(f)}/cohort/[0-9]+", "stacked-area")
            for f in families
        ]
        if families
        else [Panel("Cohorts by first emergence", f"{of_any}cohort/[0-9]+", "stacked-area")]
    )
    return [
        Section(
            "heads",
            (
                Panel("Active heads", f"{of_any}active"),
                Panel("Newly active heads", f"{of_any}newly_active"),
                Panel("Retained and dropped base heads", f"{of_any}(retained|dropped)"),
                Panel("Emerged, pruned, re-emerged", f"{of_any}(emerged|pruned|re_emerged)"),
                Panel("Strengthened and weakened", f"{of_any}(strengthened|weakened)"),
                Panel("Events per probe", f"{of_any}events"),
                Panel("Median spell (steps)", f"{of_any}median_spell"),
                Panel("Circuit rule: newly active heads", f"{CIRCUIT}newly_active"),
            ),
        ),
        Section(
            "cohorts",
            (*cohorts, Panel("Circuit rule: cohorts", f"{CIRCUIT}cohort/[0-9]+", "stacked-area")),
        ),
        Section(
            "reward",
            (
                Panel("Reward", "train/reward"),
                Panel("Loss", "train/loss"),
                Panel("Accuracy on the probe pairs", f"{of_any}accuracy"),
                Panel("Metric gap on the probe pairs", f"{of_any}metric_gap"),
                Panel("KL from the base on the probe pairs", f"{of_any}kl_from_base"),
                Panel("Coupling with the reward: rho at the best lag", f"{of_any}coupling/reward/[^/]+/rho"),
                Panel("Coupling with the reward: lag (probes)", f"{of_any}coupling/reward/[^/]+/lag"),
                Panel("Coupling with the reward: p", f"{of_any}coupling/reward/[^/]+/p"),
            ),
        ),
        Section(
            "noise",
            (
                Panel("Alerts", f"{PREFIX}alerts"),
                Panel("Alerts by kind", f"{PREFIX}alerts/[a-z_]+"),
                Panel("Split-half agreement", f"{of_any}split_half_agreement"),
                Panel("Membership changes, and by chance", f"{of_any}membership_changes(_by_chance)?"),
                Panel("Active heads whose loss is detectable", f"{of_any}detectable"),
                Panel("Signal: 1 if sufficient", f"{of_any}signal"),
                Panel("Completeness error", f"{PREFIX}completeness_error"),
                Panel("Row-sum and stream errors", f"{PREFIX}(row_sum|stream)_error"),
            ),
        ),
        Section(
            "cost",
            (
                Panel("Seconds per probe", f"{PREFIX}(pass_)?seconds"),
                Panel("Peak memory of a pass (MB)", f"{PREFIX}peak_memory_mb"),
            ),
        ),
    ]


def build(entity: str, project: str, families: tuple[str, ...] = (), name: str = NAME) -> Any:
    """Build and validate the wandb_workspaces Workspace; nothing is sent.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(
            f"the saved view needs wandb-workspaces ({error}): pip install 'headwatch[workspace]'"
        ) from error
    view = workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(
                name=section.name,
                is_open=True,
                panel_settings=workspaces.SectionPanelSettings(x_axis=STEP_KEY),
                layout_settings=workspaces.SectionLayoutSettings(columns=3, rows=2),
                panels=[
                    reports.LinePlot(
                        title=panel.title, x=STEP_KEY, metric_regex=f"^{panel.pattern}$", plot_type=panel.kind
                    )
                    for panel in section.panels
                ],
            )
            for section in plan(families)
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP_KEY),
    )
    if hasattr(view, "_to_model"):  # validated without being sent
        view._to_model().model_dump_json()
    return view


def save(workspace: Any) -> str:
    """Save the workspace as a new view in W&B and return its URL.

    Raises:
        UserError: W&B cannot be reached or refuses.
    """
    try:
        workspace.save()
    except Exception as error:  # the package lets any error of its transport through
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the view could not be saved to {workspace.entity}/{workspace.project} ({reason}): `wandb login` first, "
            "and check that the project exists; --dry-run shows the view without saving it"
        ) from error
    return str(workspace.url)


def parse_target(target: str) -> tuple[str, str]:
    """Split ENTITY/PROJECT.

    Raises:
        UserError: the target has another form.
    """
    entity, slash, project = target.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise UserError(f"{target!r}: give ENTITY/PROJECT, for example my-team/grpo")
    return entity, project


def plan_json(families: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The plan as JSON values."""
    return [asdict(section) for section in plan(families)]
