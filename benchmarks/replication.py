"""Replication: are the changes found by one probe set also found by a disjoint one?

    python benchmarks/replication.py run recipes/smollm2-135m/sft_gsm8k.yaml [--headwatch.n_pairs 128 ...]
    python benchmarks/replication.py analyse outputs/sft_gsm8k [--splits 20] [--json FILE]

run: trains a recipe like `headwatch train` (give it twice the pairs); at each probe it also computes the circuit of
each half of the pairs. analyse: each half (every other pair) is a probe set with its own history, and the changes
of each half are looked up in the other:
    events     of the evidence rule: the change of share between the same two probes
    changes    heads whose share differs significantly and materially from the base, at every probe
    set        the evidence rule's active set alone (entered or left since the base), without a test
    paper      the paper's rule (entered or left the circuit since the base)
A change is confirmed when it has the same sign in the other set and is significant there, by Benjamini-Hochberg at 5 %
over the changes to be confirmed. Also reported: the same sign alone, and whether the other set finds it by itself
(Benjamini-Hochberg at the settings' q over all heads). Membership has no p value: there confirmed means that the head
also entered (or left) in the other set. --splits N: N random halvings, summed, instead of every other pair. The same
events occur in many of them, so this is a steadier mean, not a larger sample (the paper's circuits exist only for every
other pair).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch import HeadHistory, RunFolder
from headwatch.circuits.circuit import Graph
from headwatch.circuits.stability import circuit_heads
from headwatch.lives.events import PENDING
from headwatch.stats import Estimate, EvidenceSettings, benjamini_hochberg, change, membership, shares

HALVES = "halves"
CONFIRM_LEVEL = 0.05


# --- running --------------------------------------------------------------------------------------------------------


def run(arguments: list[str]) -> None:
    """Train a recipe with a callback that also writes the circuit of each half of the pairs."""
    from headwatch import HeadWatchCallback
    from headwatch.attribution import EdgeScores
    from headwatch.training import launch

    class Halves(HeadWatchCallback):
        def on_scores(self, step: int, scores: Any) -> None:
            if self.run is None or not isinstance(scores, EdgeScores):
                return
            folder = self.run.path.parent / HALVES
            folder.mkdir(parents=True, exist_ok=True)
            graph = Graph(scores.sources, scores.targets, scores.is_real.numpy())
            active = []
            for family in dict.fromkeys(scores.families):
                strength = scores.select(family).per_pair.abs().numpy()
                for half in (strength[0::2], strength[1::2]):
                    active.append(circuit_heads(half, graph, *self._rule, resamples=0, splits=0).active)
            np.save(folder / f"step-{step:08d}.npy", np.stack(active))  # [F * 2, L, H]

    launch.run(arguments, watch=Halves)


# --- analysing ------------------------------------------------------------------------------------------------------


@dataclass
class Replication:
    """Number of changes claimed by one set, and how many of them the other set confirms."""

    claims: int = 0
    confirmed: int = 0
    same_sign: int = 0
    found_itself: int = 0

    def __add__(self, other: "Replication") -> "Replication":
        return Replication(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def row(self) -> dict[str, Any]:
        """The number of claims, and the shares of them (None without a claim)."""
        return {
            "claims": self.claims,
            **{
                name: (getattr(self, name) / self.claims if self.claims else None)
                for name in ("confirmed", "same_sign", "found_itself")
            },
        }


@dataclass
class Half:
    """One probe set of a recorded run.

    Attributes:
        shares: step -> shares, for every probe with signal.
        history: the history.
        circuit: step -> heads of the circuit, where recorded.
    """

    shares: dict[int, Estimate]
    history: HeadHistory
    circuit: dict[int, NDArray[np.bool_]]


Claim = tuple[int, int, int, int]  # step before, step after, layer, head


def halves(record: RunFolder, family: str, settings: EvidenceSettings, split: int | None = None) -> tuple[Half, Half]:
    """The two halves of one family: every other pair, or of a random order with the seed `split`."""
    model, made = record.manifest["model"], []
    in_order = record.pairs_of(family)
    if split is not None:
        in_order = np.random.default_rng(split).permutation(in_order)
    for which in (0, 1):
        pairs = np.sort(in_order[which::2])
        history = HeadHistory(model["n_layers"], model["n_heads"], settings=settings, family=family)
        found: dict[int, Estimate] = {}
        circuit: dict[int, NDArray[np.bool_]] = {}
        for step in record.steps:
            scores = record.read_scores(step)
            arrays = [np.asarray(a)[pairs] for a in (scores.head_scores, scores.metric_clean, scores.metric_corrupted)]
            history.add(step, *arrays)
            if history.signal[-1] == "ok":
                found[step] = shares(*(a.astype(np.float64) for a in arrays))
            kept = record.path.parent / HALVES / f"step-{step:08d}.npy"
            if kept.is_file() and split is None:
                circuit[step] = np.load(kept)[2 * record.families.index(family) + which]
        made.append(Half(found, history, circuit))
    return made[0], made[1]


def events(half: Half) -> list[Claim]:
    """Every event as a change between two probes: the head's last event (or the base) and this one.

    Pending events are not counted.
    """
    base, mark, claims = half.history.base_step, {}, []
    for event in half.history.events:
        if event.status == PENDING:
            continue
        assert base is not None
        head = (event.layer, event.head)
        claims.append((mark.get(head, base), event.step, *head))
        mark[head] = event.step
    return claims


def changes(half: Half) -> list[Claim]:
    """Every head at every probe whose share differs significantly and materially from the base."""
    history = half.history
    moved = history.strengthened | history.weakened
    return [(history.base_step or 0, history.steps[at[0]], int(at[1]), int(at[2])) for at in np.argwhere(moved)]


def confirmed(claims: list[Claim], by: Half, of: Half, settings: EvidenceSettings) -> Replication:
    """Look up the claims of the half `of` in the half `by`."""
    claims = [claim for claim in claims if claim[0] in by.shares and claim[1] in by.shares]
    if not claims:
        return Replication()
    tested = {spans: change(by.shares[spans[0]], by.shares[spans[1]], settings) for spans in {c[:2] for c in claims}}
    signs, p, q = [], [], []
    for before, after, layer, head in claims:
        there = tested[before, after]
        here = of.shares[after].value[layer, head] - of.shares[before].value[layer, head]
        signs.append(np.sign(here) == np.sign(there.difference[layer, head]))
        p.append(there.p_value[layer, head])
        q.append(there.q_value[layer, head])
    same = np.array(signs)
    return Replication(
        len(claims),
        int((same & (benjamini_hochberg(p) <= CONFIRM_LEVEL)).sum()),
        int(same.sum()),
        int((same & (np.array(q) <= settings.q)).sum()),
    )


def crossings(of: dict[int, NDArray[np.bool_]], by: dict[int, NDArray[np.bool_]]) -> Iterator[Replication]:
    """Heads that entered or left since the base in one half, and also in the other."""
    steps = sorted(of.keys() & by.keys())
    for step in steps[1:]:
        for before, after in ((steps[0], step), (step, steps[0])):  # entered, left
            here, there = of[after] & ~of[before], by[after] & ~by[before]
            both = int((here & there).sum())
            yield Replication(int(here.sum()), both, both, both)


def analyse(folder: Path, settings: EvidenceSettings, splits: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """Family -> kind of claim -> how much of it the other half confirms; "all families" is the sum."""
    record = RunFolder.open(folder)
    found: dict[str, dict[str, Replication]] = {}
    for family in record.families:
        for split in range(splits) if splits else (None,):
            so_far, here = found.get(family, {}), replicated(record, family, settings, split)
            found[family] = {name: so_far.get(name, Replication()) + r for name, r in here.items()}
    found["all families"] = {
        name: sum((by_name[name] for by_name in list(found.values())), Replication())
        for name in ("events", "changes", "set", "paper")
    }
    return {family: {name: r.row() for name, r in by_name.items()} for family, by_name in found.items()}


def replicated(
    record: RunFolder, family: str, settings: EvidenceSettings, split: int | None = None
) -> dict[str, Replication]:
    """Kind of claim -> how much of it the other half confirms, both ways, for one split of a family's pairs."""
    one, other = halves(record, family, settings, split)
    both = ((one, other), (other, one))
    sets = [
        {step: membership(half.shares[step].value, None, settings) for step in half.shares} for half in (one, other)
    ]
    shared = [{step: s[step] for step in s if step in sets[0] and step in sets[1]} for s in sets]
    return {
        "events": sum((confirmed(events(a), b, a, settings) for a, b in both), Replication()),
        "changes": sum((confirmed(changes(a), b, a, settings) for a, b in both), Replication()),
        "set": sum((r for a, b in (shared, shared[::-1]) for r in crossings(a, b)), Replication()),
        "paper": sum((r for a, b in both if a.circuit for r in crossings(a.circuit, b.circuit)), Replication()),
    }


def table(rows: dict[str, Any]) -> str:
    """Markdown."""

    def part(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    lines = [
        "| run | family | claims of one set | number | confirmed | same sign | found by itself |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, families in rows.items():
        for family, by_name in families.items():
            for what, r in by_name.items():
                cells = " | ".join(part(r[key]) for key in ("confirmed", "same_sign", "found_itself"))
                lines.append(f"| {name} | {family} | {what} | {r['claims']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line; run or analyse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("recipe", help="followed by any of its options, as for headwatch train")
    looking = commands.add_parser("analyse")
    looking.add_argument("folders", nargs="+", type=Path)
    looking.add_argument("--splits", type=int, default=0, help="random halvings instead of every other pair")
    looking.add_argument("--json", type=Path)
    looking.add_argument("--settings", type=json.loads, default={}, help="of the rule: '{\"q\": 0.001}'")
    options, rest = parser.parse_known_args()
    if options.command == "run":
        run([options.recipe, *rest])
        return
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    settings = EvidenceSettings(**options.settings)
    rows = {folder.resolve().name: analyse(folder, settings, options.splits) for folder in options.folders}
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
