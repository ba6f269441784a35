r"""Events between two states of a model with real weights, under each rule for the points at which gradients are taken.

    python benchmarks/event_rules.py --out FOLDER --family recall --changes base:off off:base base:sft \
        --states base=MODEL off=MODEL:L18.H6,L16.H1,L29.H0 sft=OTHER_MODEL

Every state is measured on the same pairs: by every rule, and by exact patching (both directions) of the heads that have
an event by some rule and of the strongest others, --patched in all. Then the pairs are halved at random, --splits
times. Each half is a probe set with its own history, and for each rule:

- events: mean number per probe set (evidence rule, defaults; pending ones count, as there is no later probe);
- in both: the same head with the same event in the other half, as a share of the events of one;
- patching: its verdict on the events, from the same pairs (`lives.exact_patching`);
- true: the part of the events that exact patching of all pairs also finds by the evidence rule, and the part of those
  that a half finds.

On all pairs, over the patched heads: agreement of each rule's shares with the patched shares in each state, and of the
changes of share between the states (Spearman correlation), the mean absolute difference from patching, and how many
of the large ones are wrong by more than a quarter.

Exact patching is a rule too: what no score can exceed. Different halvings have pairs in common, so more of them
make the means steadier, not the sample larger. Measurements are kept in the folder and not repeated.
"""

import argparse
import json
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from scores import RULES
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch import Anatomy, HeadHistory, ProbeSet, patch_heads, score_heads
from headwatch.analysis.interventions import scaled_heads
from headwatch.stats import EvidenceSettings, shares

PATCHING = "exact patching"
LARGE, WRONG = 0.05, 0.25  # of the metric gap; of the exact share
VERDICTS = ("supports", "same sign", "contradicts")
Head = tuple[int, int]
Floats = NDArray[np.float64]
Measured = dict[str, Floats]  # effects [N, L, H], clean [N], corrupted [N]
Events = set[tuple[int, int, str]]  # layer, head, kind


# --- measuring ------------------------------------------------------------------------------------------------------


class State:
    """One state of a model.

    Args:
        described: a model folder, with ":L18.H6,L16.H1" after it if heads are off.
    """

    def __init__(self, described: str) -> None:
        self.folder, _, heads = described.partition(":")
        self.off = heads.split(",") if heads else []

    def measure(self, probes: ProbeSet, rule: str, heads: list[Head], metric: str) -> Measured:
        """By one rule, or by exact patching of these heads (the effects of the others are 0)."""
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval().requires_grad_(False)
        with scaled_heads(model, self.off) if self.off else nullcontext():
            if rule != PATCHING:
                scored = score_heads(model, probes, metric=metric, **RULES[rule])
                effects, readings = scored.per_pair.numpy(), scored.readings
            else:
                patched, anatomy = patch_heads(model, probes, heads, metric), Anatomy.of(model)
                effects, readings = np.zeros((len(probes), anatomy.n_layers, anatomy.n_heads)), patched.readings
                for column, head in enumerate(heads):
                    effects[:, *head] = patched.per_pair[:, column].numpy()
        return {
            "effects": effects,
            "clean": readings.metric_clean.numpy(),
            "corrupted": readings.metric_corrupted.numpy(),
            "correct": readings.correct.numpy(),
        }


def measured(
    out: Path, name: str, state: State, probes: ProbeSet, rule: str, heads: list[Head], metric: str
) -> Measured:
    """The measurement in the folder if it has the same pairs and heads, or a new one that is kept there."""
    file, of = out / f"{name}-{metric}-{rule.replace(' ', '_')}.npz", np.array(heads).reshape(-1, 2)
    kept = np.load(file) if file.is_file() else None
    if kept is None or len(kept["clean"]) != len(probes) or not np.array_equal(kept["heads"].reshape(-1, 2), of):
        began = time.process_time()
        found = state.measure(probes, rule, heads, metric)
        np.savez_compressed(file, heads=of, seconds=time.process_time() - began, **found)
        print(f"{file.name}: {time.process_time() - began:.0f} CPU s", flush=True)
        kept = np.load(file)
    return {key: kept[key] for key in kept.files}


def chosen_heads(every: dict[tuple[str, str], Measured], changes: list[tuple[str, str]], n: int) -> list[Head]:
    """Heads with an event by some rule on all pairs, then those of largest |share| by any rule in any state."""
    size = np.max([np.abs(share_of(found)) / np.abs(share_of(found)).sum() for found in every.values()], axis=0)
    rules = dict.fromkeys(rule for _, rule in every)
    pairs = slice(None)
    seen = [events_of(*(every[state, rule] for state in change), pairs) for change in changes for rule in rules]
    first = {(layer, head) for found in seen for layer, head, _ in found}
    strongest = [(int(at) // size.shape[1], int(at) % size.shape[1]) for at in np.argsort(-size, axis=None)]
    return sorted([*first, *(head for head in strongest if head not in first)][: max(n, len(first))])


def share_of(found: Measured) -> Floats:
    """Shares [L, H] on all pairs."""
    return shares(found["effects"], found["clean"], found["corrupted"]).value


# --- events ---------------------------------------------------------------------------------------------------------


def history_of(
    before: Measured, after: Measured, pairs: Any, patched: tuple[Measured, Measured] | None = None
) -> HeadHistory:
    """The history of two probes on these pairs, with patching of some heads."""
    history = HeadHistory(*before["effects"].shape[1:], settings=EvidenceSettings())
    for step, found in enumerate((before, after)):
        history.add(step, found["effects"][pairs], found["clean"][pairs], found["corrupted"][pairs])
        if patched is not None:
            exact = patched[step]
            effects = np.full_like(exact["effects"][pairs], np.nan)
            for head in exact["heads"]:
                effects[:, *head] = exact["effects"][pairs][:, *head]
            history.add_patched(effects, exact["clean"][pairs], exact["corrupted"][pairs])
    return history


def events_of(before: Measured, after: Measured, pairs: Any) -> Events:
    """The events of two probes."""
    return {(e.layer, e.head, e.kind) for e in history_of(before, after, pairs).events}


def agreement(estimated: Floats, exact: Floats, heads: Any) -> dict[str, float]:
    """Of shares, or of changes of share, [L, H], with those by exact patching of these heads."""
    one, other = (values[heads[:, 0], heads[:, 1]] for values in (estimated, exact))
    large = np.abs(other) >= LARGE
    return {
        "agreement": float(spearmanr(one, other).statistic),
        "error": float(np.abs(one - other).mean()),
        "large": int(large.sum()),
        "wrong": int((np.abs(one - other) > WRONG * np.abs(other))[large].sum()),
    }


def agreements(
    rules: list[str], of: dict[tuple[str, str], Measured], changes: list[tuple[str, str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """State or change -> rule -> agreement with exact patching on all pairs."""
    share = {key: share_of(found) for key, found in of.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for state in dict.fromkeys(state for state, _ in of):
        heads = of[state, PATCHING]["heads"]
        found[state] = {rule: agreement(share[state, rule], share[state, PATCHING], heads) for rule in rules}
    for first, second in changes:
        heads, of_rule = of[first, PATCHING]["heads"], {}
        for rule in rules:
            moved, truly = (share[second, which] - share[first, which] for which in (rule, PATCHING))
            of_rule[rule] = agreement(moved, truly, heads)
        found[f"{first} to {second}"] = of_rule
    return found


def compare(
    rules: list[str], of: dict[tuple[str, str], Measured], change: tuple[str, str], splits: int
) -> dict[str, dict[str, Any]]:
    """Counts of each rule for one change, summed over both halves of every halving."""
    exact = of[change[0], PATCHING], of[change[1], PATCHING]
    n_pairs = len(exact[0]["clean"])
    truth = events_of(*exact, slice(None))
    rows: dict[str, dict[str, Any]] = {}
    for rule in rules:
        before, after = of[change[0], rule], of[change[1], rule]
        count: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        for split in range(splits):
            order = np.random.default_rng(split).permutation(n_pairs)
            histories = [history_of(before, after, np.sort(order[half::2]), exact) for half in (0, 1)]
            two = [{(e.layer, e.head, e.kind) for e in history.events} for history in histories]
            for history, own in zip(histories, two, strict=True):
                count["sets"] += 1
                count["no signal"] += any(signal != "ok" for signal in history.signal)
                count["events"] += len(own)
                count["in both"] += len(two[0] & two[1])
                count["true"] += len(own & truth)
                count["truth"] += len(truth)
                count.update(str(e.patching) for e in history.events)
                seen.update(f"L{e.layer}.H{e.head} {e.kind}" for e in history.events)
        every = sorted(f"L{layer}.H{head} {kind}" for layer, head, kind in events_of(before, after, slice(None)))
        rows[rule] = {**count, "heads": dict(seen.most_common()), "all pairs": every}
    return rows


def part(number: float, of: float) -> str:
    """A share in percent, or nothing where there is nothing to share."""
    return f"{number / of:.0%}" if of else ""


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: one row per change and rule."""
    lines = [
        "| change | rule | events per set | in both | patching supports | same sign | contradicts | true "
        "| of the true, found |",
        "| --- " * 9 + "|",
    ]
    for change, rows in found.items():
        for rule, row in rows.items():
            events = row["events"]
            cells = [f"{events / row['sets']:.1f}", part(row["in both"], events)]
            cells += [part(row.get(verdict, 0), events) for verdict in VERDICTS]
            cells += [
                part(row["true"], events),
                f"{part(row['true'], row['truth'])} of {row['truth'] / row['sets']:.0f}",
            ]
            lines.append(f"| {change} | {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_agreement(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: one row per state or change and rule."""
    lines = [f"| | rule | agreement | error | {LARGE:.0%} or more | wrong by over {WRONG:.0%} |", "| --- " * 6 + "|"]
    for what, by_rule in found.items():
        for rule, row in by_rule.items():
            numbers = f"{row['agreement']:.3f} | {row['error']:.2%} | {row['large']} | {row['wrong']}"
            lines.append(f"| {what} | {rule} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the measurements, and events.json")
    parser.add_argument("--states", nargs="+", required=True, metavar="NAME=MODEL[:HEADS]")
    parser.add_argument("--changes", nargs="+", required=True, metavar="NAME:NAME")
    parser.add_argument("--family", default="recall")
    parser.add_argument("--metric", choices=("logit_diff", "kl"), default="logit_diff")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=[rule for rule in RULES if rule != "clean"])
    parser.add_argument("--pairs", type=int, default=64, help="of each of the two probe sets")
    parser.add_argument("--patched", type=int, default=100, help="heads that are patched")
    parser.add_argument("--splits", type=int, default=10, help="random halvings of the pairs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    states = {name: State(rest) for name, _, rest in (state.partition("=") for state in options.states)}
    changes = [(first, second) for first, _, second in (change.partition(":") for change in options.changes)]
    tokenizer = AutoTokenizer.from_pretrained(next(iter(states.values())).folder)
    probes = ProbeSet.generate(options.family, tokenizer, n_pairs=2 * options.pairs, seed=options.seed)
    of = {
        (name, rule): measured(options.out, name, state, probes, rule, [], options.metric)
        for name, state in states.items()
        for rule in options.rules
    }
    heads = chosen_heads(of, changes, options.patched)
    for name, state in states.items():
        of[name, PATCHING] = measured(options.out, name, state, probes, PATCHING, heads, options.metric)
    rules = [*options.rules, PATCHING]
    found = {" to ".join(change): compare(rules, of, change, options.splits) for change in changes}
    agree = agreements(options.rules, of, changes)
    both = {"events": found, "agreement": agree}
    (options.out / "events.json").write_text(json.dumps(both, indent=1) + "\n", encoding="utf-8")
    print(table(found), table_of_agreement(agree), sep="\n\n")


if __name__ == "__main__":
    main()
