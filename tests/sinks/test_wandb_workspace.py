"""The saved W&B view: it builds and validates offline, and its patterns match what a real training logs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_trainers import grpo_trainer, save_tiny_model

from headwatch import HeadWatchCallback, RunFolder, UserError
from headwatch.cli import main
from headwatch.lives.reward_coupling import coupling_scalars
from headwatch.sinks import wandb_workspace as workspace

SECTIONS = ["heads", "cohorts", "reward", "noise", "cost"]


def test_the_view_is_valid_and_draws_cohorts_as_areas() -> None:
    view = workspace.build("team", "grpo", ("carry", "my.family"))
    spec = view._to_model().model_dump(mode="json", by_alias=True)  # what would be sent
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections if section["panels"]] == SECTIONS
    panels = {panel["config"]["chartTitle"]: panel["config"] for section in sections for panel in section["panels"]}
    cohorts = panels["Cohorts by first emergence: my.family"]
    assert cohorts["metricRegex"] == r"^headwatch/my\.family/cohort/[0-9]+$"
    assert cohorts["useMetricRegex"]
    assert cohorts["plotType"] == "stacked-area"
    assert {panel["xAxis"] for panel in panels.values()} == {"train/global_step"}


def test_every_panel_matches_what_a_training_logs(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    watch = HeadWatchCallback(["addition", "recall"], every=1, n_pairs=8, strict=True)
    grpo_trainer(model, tmp_path, [watch], max_steps=4, learning_rate=0.05).train()
    run = RunFolder.open(tmp_path)
    logged = {f"headwatch/{name}" for row in run.scalars() for name in row}
    logged |= {f"train/{name}" for row in run.training() for name in row}
    assert any("cohort" in name for name in logged)  # a learning rate that makes heads emerge
    # Only with heads that have emerged by the evidence rule; only after a dozen probes.
    absent = {"Cohorts by first emergence"}
    absent |= {p.title for s in workspace.plan() for p in s.panels if p.title.startswith("Coupling")}
    for section in workspace.plan():
        for panel in section.panels:
            found = [name for name in logged if re.fullmatch(panel.pattern, name)]
            assert found or panel.title in absent, panel
    panels = {panel.title: panel.pattern for section in workspace.plan() for panel in section.panels}
    assert [name for name in logged if re.fullmatch(panels["Alerts"], name)] == ["headwatch/alerts"]
    assert re.fullmatch(panels["Cohorts by first emergence"], "headwatch/addition/cohort/100")
    rng = np.random.default_rng(0)
    newly, turnover = (rng.integers(0, 30, 20).tolist() for _ in range(2))
    rewards = [{"step": step, "reward": rng.random()} for step in range(20)]
    coupled = coupling_scalars(range(20), newly, turnover, rewards, "reward")
    for end in ("rho", "lag", "p"):
        pattern = next(p for title, p in panels.items() if title.startswith("Coupling") and p.endswith(f"/{end}"))
        assert sum(bool(re.fullmatch(pattern, f"headwatch/addition/{name}")) for name in coupled) == 2

    check_page({name.removeprefix("headwatch/") for name in logged if name.startswith("headwatch/")}, set(coupled))


def check_page(logged: set[str], coupled: set[str]) -> None:
    """The table of docs/reference/live.md has every logged name, and no other."""
    page = (Path(__file__).parents[2] / "docs/reference/live.md").read_text(encoding="utf-8")
    table = page[page.index("| name | what |") : page.index("A test compares this table")]
    listed = {name for row in table.splitlines() for name in re.findall("`([^`]+)`", row.replace("\\|", ""))}
    of_names = {re.sub(r"(cohort)/[0-9]+$", r"\1/<step>", name) for name in logged if name != "step"}
    of_names = {re.sub("^(addition|recall)/", "F/", re.sub("^alerts/.*", "alerts/<kind>", name)) for name in of_names}
    of_names |= {f"F/{name}" for name in coupled} | {"F/cohort/<step>"}
    # These need signal or events, which the random model does not have.
    of_names |= {"F/membership_changes_by_chance", "F/events_patched", "F/events_contradicted", "patching_seconds"}
    by_circuit = {name for name in of_names if name.startswith("F/circuit/")}
    unlisted = {name for name in by_circuit - listed if name.replace("/circuit", "") in listed}
    assert of_names - listed - unlisted == set()
    assert listed - of_names - {"F/circuit/<name>"} == set()


def test_a_dry_run_prints_the_plan_and_sends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "save", pytest.fail)
    assert main(["workspace", "team/grpo", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line in SECTIONS] == SECTIONS
    assert "Nothing was sent" in out
    assert main(["workspace", "team/grpo", "--families", "carry", "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["url"] is None
    assert [section["name"] for section in printed["sections"]] == SECTIONS
    assert printed["sections"][1]["panels"][0]["pattern"] == "headwatch/carry/cohort/[0-9]+"


@pytest.mark.parametrize("target", ["grpo", "/grpo", "team/", "a/b/c", ""])
def test_a_target_that_is_none_is_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workspace", target, "--dry-run"]) == 2
    assert "ENTITY/PROJECT" in capsys.readouterr().err


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"headwatch\[workspace\]"):
        workspace.build("team", "grpo")


def test_a_server_that_says_no_is_one_line() -> None:
    class Refuses:
        entity, project = "team", "grpo"

        def save(self) -> None:
            raise ConnectionError("no route\nand much more")

    with pytest.raises(UserError) as caught:
        workspace.save(Refuses())
    assert "no route" in str(caught.value)
    assert "\n" not in str(caught.value)
