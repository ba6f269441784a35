"""The end of the demo: exact patching of the events, circuits with their faithfulness, and the emerged heads off.

Everything is computed on the trained model in memory, kept in the run folder for the report, and logged to the run that
the training opened in W&B. The sentences state what was measured, whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from headwatch.analysis.attention import patterns_of
from headwatch.analysis.circuit_report import CircuitOptions, family_circuits
from headwatch.analysis.interventions import scaled_heads
from headwatch.analysis.roles import head_roles
from headwatch.attribution import ScoringSettings
from headwatch.demo.pretraining import right_answers
from headwatch.demo.sums import Sum
from headwatch.errors import UserError
from headwatch.evaluation.ablation import Arm, make_arms, run_arms
from headwatch.evaluation.head_groups import heads_of_run, names_of
from headwatch.evaluation.run import Result
from headwatch.evaluation.to_wandb import log_results
from headwatch.lives.exact_patching import CONTRADICTS
from headwatch.model.head_names import Head
from headwatch.probes import ProbeSet
from headwatch.record.after import heads_with_events, keep_result
from headwatch.record.run_folder import RunFolder
from headwatch.report.heads_off import verdict
from headwatch.sinks.wandb_after import log_circuits, log_roles
from headwatch.sinks.wandb_run import existing_run

SUITE = "two-digit sums"
MAX_PATTERNS = 12  # heads whose attention is drawn


@dataclass(frozen=True)
class EndPlan:
    """Sizes of the demo's end.

    Attributes:
        sums: number of problems of the ablation.
        random_sets: random sets of heads; 19 can give a rank p of 0.05.
        controls: random circuits per size of the curve.
        sizes: shares of the edges on the curve: without the benchmark's three smallest, which are 1 to 7 edges here.
        role_prompts: prompts per family for the roles.
    """

    sums: int = 1000
    random_sets: int = 19
    controls: int = 2
    sizes: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    role_prompts: int = 8


def circuits_of(
    model: nn.Module, probes: ProbeSet, path_steps: int, plan: EndPlan, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The circuit of each family as plain values, and one line per family that has none."""
    scoring = ScoringSettings(steps=path_steps, edges=True)
    options = CircuitOptions(controls=plan.controls, sizes=plan.sizes, seed=seed)
    found, missing = [], []
    for family in probes.family_names:
        try:
            found += family_circuits(model, probes.select(family), scoring, options)
        except UserError as error:
            missing.append(f"{family}: no circuit ({error})")
    return [each.to_json() for each in found], missing


def end_of_run(
    model: nn.Module,
    base: nn.Module,
    tokenizer: Any,
    run: RunFolder,
    base_circuits: list[dict[str, Any]],
    path_steps: int,
    plan: EndPlan,
    seed: int,
    tick: Callable[[], object] = lambda: None,
) -> list[str]:
    """Measure the end of one training, keep and log it; returns the sentences for the console.

    Args:
        model: the trained model.
        base: the model before training.
        tokenizer: of both.
        run: the record of the training.
        base_circuits: of `circuits_of` on `base`.
        path_steps: points of the path of the scores.
        plan: sizes.
        seed: of the random circuits, sums and sets of heads.
        tick: called after each of the three parts.
    """
    name, probes = str(run.manifest["name"]), ProbeSet.load(run.path / "probes.safetensors")
    circuits, missing = circuits_of(model, probes, path_steps, plan, seed)
    for label, families in (("base", base_circuits), (name, circuits)):
        if families:
            keep_result(run, "circuits", {"model": label, "families": families})
    tick()
    rows = [row for f in probes.family_names for row in _rows_of(probes, f)[: plan.role_prompts]]
    roles = head_roles(model, probes.select(rows), base, seed=seed)
    patterns = patterns_of(model, probes, tokenizer, heads_with_events(run)[:MAX_PATTERNS])
    keep_result(run, "roles", {"model": name, "base": "base", **roles.to_json(patterns)})
    tick()
    emerged = emerged_heads(run)
    ablation, line = _heads_off(model, tokenizer, emerged, plan, seed)
    tick()
    if ablation is not None:
        keep_result(run, "ablation", {"model": name, "groups": {"emerged": names_of(emerged)}, "suites": ablation})
    if (wandb_run := existing_run()) is not None and not getattr(wandb_run, "disabled", False):
        log_circuits(name, circuits)
        log_roles(name, roles.rows())
        if ablation is not None:
            log_results(ablation, name)
    return [patching_line(run), *circuit_lines(circuits), *missing, line]


def emerged_heads(run: RunFolder) -> list[Head]:
    """The heads that emerged on any family and are active at the last probe, the strongest first."""
    found: list[Head] = []
    for family in run.families:
        try:
            found += heads_of_run(run.path, "emerged", family)
        except UserError:  # no such head
            continue
    return list(dict.fromkeys(found))


# --- sentences --------------------------------------------------------------------------------------------------------


def patching_line(run: RunFolder) -> str:
    """How many events were patched exactly, and how many of them patching contradicts."""
    events = [event for event in run.events() if event.rule == "evidence"]
    verdicts = [event.patching for event in events if event.patching is not None]
    if not events:
        return "events: none"
    against = verdicts.count(CONTRADICTS)
    verdict = "" if not verdicts else "; none is contradicted" if not against else f"; {against} contradicted"
    return f"events: {len(events)}, of which {len(verdicts)} were patched exactly{verdict}"


def circuit_lines(families: Sequence[dict[str, Any]]) -> list[str]:
    """One line per family: its circuit, its faithfulness on other pairs, and random circuits of equal size."""
    lines = []
    for family in families:
        row = min(family["curve"], key=lambda row: abs(row["edges"] - family["edges"]))
        lowest, highest = (round(end(row["random"]), 2) + 0.0 for end in (min, max)) if row["random"] else (None, None)
        random = "" if lowest is None else f"; random ones keep {lowest:.2f} to {highest:.2f}"
        lines.append(
            f"circuit of {family['family']}: {family['edges']:,} of {family['real_edges']:,} edges keep "
            f"{row['faithfulness']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}] of the metric gap{random}"
        )
    return lines


def _heads_off(
    model: nn.Module, tokenizer: Any, emerged: Sequence[Head], plan: EndPlan, seed: int
) -> tuple[dict[str, Any] | None, str]:
    """Switch the emerged heads off, against random sets; returns the suites of the ablation and a sentence."""
    if not emerged:
        return None, "heads off: no head emerged and stayed active, so none was switched off"
    config: Any = model.config
    shape = (config.num_hidden_layers, config.num_attention_heads)
    try:
        arms = make_arms({"emerged": emerged}, [0.0], shape, plan.random_sets, seed)
    except UserError:
        return None, f"heads off: {len(emerged)} heads emerged, too many to draw other heads to compare with"
    arms = _distinct(arms)
    every = [Sum(a, b) for a in range(10, 100) for b in range(10, 100)]
    drawn = np.random.default_rng([seed, 3]).permutation(len(every))[: plan.sums]
    sums = [every[index] for index in drawn]

    def evaluate(arm: Arm) -> Result:
        with scaled_heads(model, arm.heads):
            right = right_answers(model, tokenizer, sums)  # type: ignore[arg-type]
        return Result(tuple(int(i) for i in drawn), right[:, None].astype(np.float64), 0.0, 0.0, 0)

    found = run_arms(arms, evaluate)
    return {SUITE: found}, ablation_line(found, names_of(emerged))


def ablation_line(found: dict[str, Any], heads: Sequence[str]) -> str:
    """The result of switching heads off in one sentence, with a verdict that follows from the numbers."""
    none, own = found["arms"][0]["pass1"], found["arms"][1]
    change = own["against_none"]["difference"]
    text = (
        f"heads off: without the {len(heads)} emerged head{'s' * (len(heads) > 1)} ({', '.join(heads[:6])}"
        f"{', ...' * (len(heads) > 6)}) the accuracy on {own['problems']:,} sums is "
        f"{100 * own['pass1']['value']:.1f} % instead of {100 * none['value']:.1f} % ({_points(change)} points)"
    )
    if not found["against_random"]:
        return f"{text}; no random sets were drawn"
    other = found["against_random"][0]
    text += (
        f"; {other['sets']} random sets of as many heads in the same layers: "
        f"{100 * other['random_mean']['value']:.1f} % on average, {100 * other['random_lowest']:.1f} to "
        f"{100 * other['random_highest']:.1f} %. "
    )
    return text + verdict(change, other)


def _points(change: dict[str, float]) -> str:
    return f"{100 * change['value']:+.1f} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"


def _distinct(arms: Sequence[Arm]) -> list[Arm]:
    """The arms without repeated random sets: layers with few heads have few sets."""
    seen, kept = set(), []
    for arm in arms:
        key = (arm.random is None, arm.name if arm.random is None else frozenset(arm.heads))
        if key not in seen:
            seen.add(key)
            kept.append(arm)
    return kept


def _rows_of(probes: ProbeSet, family: str) -> list[int]:
    return [row for row, name in enumerate(probes.families) if name == family]
