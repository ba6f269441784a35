"""Planted changes under each rule for the points at which gradients are taken, with a truth that no rule decides.

    python benchmarks/planted_rules.py --out runs/planted-rules --first-base 15     # 3 bases x 2 plans of 3 heads
    python benchmarks/planted_rules.py --out runs/planted-rules --only-analyse      # the table again

The bases, plans and events are those of planted.py. There the weights at a probe are known in advance (a learning rate
of 0), so no trainer runs here: the model of each probe is measured directly, by every rule, on the same pairs.

In planted.py the truth is the same score on other pairs, which favours whatever rule is judged. Here the truth is the
evidence rule without its tests on shares by exact patching of all heads (both directions), on other pairs; it also
decides which heads may be planted. For comparison each rule is judged by its own shares on the same other pairs, and
exact patching of the probe pairs themselves is a rule too (--patch-probes): what no score can exceed. A second table
compares the shares of all states with the exact ones, for heads that carry much.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from planted import (
    EVERY,
    FAMILIES,
    STEPS,
    Count,
    Measure,
    Measured,
    Plant,
    States,
    Truth,
    base_model,
    by_score,
    candidates,
    draw_plan,
    plan_options,
)
from scores import RULES

from headwatch import HeadHistory, patch_heads
from headwatch.demo.quiet import one_thread, quiet_libraries
from headwatch.stats import EvidenceSettings

PATCHING = "exact patching"
OWN = "the rule's own score"
LARGE, WRONG = 0.05, 0.25  # of the metric gap; of the exact share
PROBES = range(0, STEPS + 1, EVERY)


def by_patching(model: Any, probes: Any) -> Measured:
    """Exact effects of all heads on every pair."""
    found = patch_heads(model, probes)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    readings = found.readings
    effects = found.per_pair.numpy().reshape(-1, layers, heads)
    return effects, readings.metric_clean.numpy(), readings.metric_corrupted.numpy()


def measures(rules: list[str]) -> dict[str, Measure]:
    """How each rule measures the heads of a model."""
    return {name: partial(by_score, **RULES[name]) for name in rules} | {PATCHING: by_patching}


def run_plan(plants: list[Plant], probes: dict[str, States], truths: dict[str, Truth], out: Path) -> None:
    """Measure one plan at every probe, by every rule, and save what the analysis needs.

    Args:
        plants: the planted heads.
        probes: the probe pairs, by rule.
        truths: the other pairs, by rule.
        out: an .npz file.
    """
    arrays: dict[str, NDArray[Any]] = {"plants": np.array([plant.head for plant in plants])}
    scales = [{plant.head: plant.at(step) for plant in plants} for step in PROBES]
    for name, states in probes.items():
        at = [states.measured(scale) for scale in scales]
        for place, family in enumerate(FAMILIES):
            for number, what in enumerate(("scores", "clean", "corrupted")):
                arrays[f"{name}/{family}/{what}"] = np.stack([found[place][number] for found in at])
    for name, truth in truths.items():
        arrays[f"{name}/truth"] = np.stack([truth.shares(scale) for scale in scales], axis=1)  # [F, P, L, H]
    np.savez_compressed(out, **arrays)


def run_base(options: argparse.Namespace, seed: int) -> None:
    """All plans of one base that do not exist yet."""
    base = base_model(options.out / f"base-{seed}", seed)
    how = measures(options.rules)
    truths = {name: Truth(base, options.n_truth, measure) for name, measure in how.items()}
    possible = candidates(truths[PATCHING].shares({}))
    rng = np.random.default_rng([seed, 7])
    for number in range(options.plans):
        plants = draw_plan(rng, [possible[i] for i in rng.permutation(len(possible))[: options.heads]])
        out = options.out / f"plan-{seed}-{number}.npz"
        if out.is_file():
            continue
        began = time.process_time()
        probes = {
            name: States(base, options.n_pairs, 1000 * seed + number, measure)
            for name, measure in how.items()
            if name != PATCHING or options.patch_probes
        }
        run_plan(plants, probes, truths, out)
        seconds = time.process_time() - began
        print(f"{out.name}: {[(p.head, p.kind) for p in plants]}, {seconds:.0f} CPU s", flush=True)


def analyse(out: Path, sizes: list[int], settings: EvidenceSettings) -> dict[str, dict[str, dict[int, Count]]]:
    """Rule -> truth -> pairs per family -> counts over all plans; the probe sets are disjoint parts of the pairs."""
    counts: dict[str, dict[str, dict[int, Count]]] = {}
    for plan in sorted(out.glob("plan-*.npz")):
        found = np.load(plan)
        plants = {(int(layer), int(head)) for layer, head in found["plants"]}
        for rule in dict.fromkeys(key.split("/")[0] for key in found.files if key.endswith("/scores")):
            for place, family in enumerate(FAMILIES):
                probes = [found[f"{rule}/{family}/{what}"] for what in ("scores", "clean", "corrupted")]
                for size in sizes:
                    for first in range(0, probes[0].shape[1] - size + 1, size):
                        history = history_of([part[:, first : first + size] for part in probes], family, settings)
                        for truth, of in ((PATCHING, PATCHING), (OWN, rule)):
                            by_size = counts.setdefault(rule, {}).setdefault(truth, {})
                            by_size.setdefault(size, Count()).add(plants, found[f"{of}/truth"][place], history)
    return counts


def history_of(measured: list[NDArray[Any]], family: str, settings: EvidenceSettings) -> HeadHistory:
    """The history of scores [P, N, L, H] and of the metric of both runs, [P, N]."""
    history = HeadHistory(*measured[0].shape[2:], settings=settings, family=family)
    for step, at in zip(PROBES, zip(*measured, strict=True), strict=True):
        history.add(step, *at)
    return history


def table(counts: dict[str, dict[str, dict[int, Count]]]) -> str:
    """Markdown: one row per truth, number of pairs and rule."""
    lines = [
        "| truth | pairs | rule | planted events | found | at another probe | small plants found | untouched heads "
        "| with an event | with a false event |",
        "| --- " * 10 + "|",
    ]
    sizes = list(next(iter(next(iter(counts.values())).values())))
    for truth in (PATCHING, OWN):
        for size in sizes:
            for rule, by_truth in counts.items():
                c = by_truth[truth][size]
                if truth == OWN and rule == PATCHING:
                    continue
                lines.append(
                    f"| {truth} | {size} | {rule} | {c.planted} | {c.found} ({c.row()['found_share']:.1%}) | {c.late} "
                    f"| {c.small_found} of {c.small} | {c.untouched} | {c.given} ({c.row()['given_share']:.2%}) "
                    f"| {c.false} ({c.row()['false_share']:.2%}) |"
                )
    return "\n".join(lines)


def errors(out: Path) -> dict[str, dict[str, float]]:
    """Rule -> how far shares of heads that carry much are from exact patching, over all states of all plans.

    A head of one base and family is `wrong` if its share differs by more than WRONG of the exact one at some probe.
    """
    relative: dict[str, list[NDArray[Any]]] = {}
    heads: dict[str, dict[tuple[Any, ...], bool]] = {}
    for plan in sorted(out.glob("plan-*.npz")):
        found, base = np.load(plan), plan.stem.split("-")[1]
        exact = found[f"{PATCHING}/truth"]  # [F, P, L, H]
        for rule in (key.split("/")[0] for key in found.files if key.endswith("/truth")):
            if rule == PATCHING:
                continue
            at = np.argwhere(np.abs(exact) >= LARGE)
            error = np.array([abs(found[f"{rule}/truth"][tuple(a)] / exact[tuple(a)] - 1.0) for a in at])
            relative.setdefault(rule, []).append(error)
            for (family, _, layer, head), value in zip(at.tolist(), error, strict=True):
                key = (base, family, layer, head)
                of_rule = heads.setdefault(rule, {})
                of_rule[key] = of_rule.get(key, False) or bool(value > WRONG)
    return {
        rule: {
            "heads": len(heads[rule]),
            "wrong": sum(heads[rule].values()),
            "wrong_first_layer": sum(wrong for key, wrong in heads[rule].items() if key[2] == 0),
            "median": float(np.median(np.concatenate(found))),
            "worst": float(np.concatenate(found).max()),
        }
        for rule, found in relative.items()
    }


def table_of_errors(found: dict[str, dict[str, float]]) -> str:
    """Markdown: one row per rule."""
    lines = [
        f"| rule | heads with a share of {LARGE:.0%} or more | wrong by over {WRONG:.0%} | of these in layer 0 "
        "| median error | largest error |",
        "| --- " * 6 + "|",
    ]
    lines += [
        f"| {rule} | {row['heads']} | {row['wrong']} | {row['wrong_first_layer']} | {row['median']:.1%} "
        f"| {row['worst']:.0%} |"
        for rule, row in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = plan_options(__doc__, 2, 512)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=[rule for rule in RULES if rule != "clean"])
    parser.add_argument("--patch-probes", action="store_true", help="also judge exact patching of the probe pairs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with quiet_libraries(), one_thread():
        for seed in range(0 if options.only_analyse else options.bases):
            run_base(options, options.first_base + seed)
    counts = analyse(options.out, options.sizes, EvidenceSettings())
    rows = {
        rule: {truth: {size: c.row() for size, c in by_size.items()} for truth, by_size in by_truth.items()}
        for rule, by_truth in counts.items()
    }
    wrong = errors(options.out)
    found = {"counts": rows, "errors": wrong}
    (options.out / "planted_rules.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(counts), table_of_errors(wrong), sep="\n\n")


if __name__ == "__main__":
    main()
