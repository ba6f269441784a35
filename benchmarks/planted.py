"""Planted truth: known changes of heads, planted in a model while a real trainer runs, and the events reported.

    python benchmarks/planted.py --out runs/planted                     # 3 bases x 3 plans of 3 heads
    python benchmarks/planted.py --out runs/planted --only-analyse      # the tables again, from existing runs
    python benchmarks/planted.py --out runs/held-out --first-base 6     # other bases

A base model (the demo's, 4 layers of 16 heads) is trained by SFTTrainer at a learning rate of 0, so that only a
callback changes weights: columns of o_proj, head by head, between optimizer steps. A plan has heads of five kinds:
    on        switched off before the base probe, back on at a step                    -> emerged
    on-off    the same, and off again later                                             -> emerged, pruned
    fade      a head of the base, faded out over the steps between two probes           -> dropped
    slow      a head of the base, faded out over three probes                           -> dropped, at the true probe
    untouched every other head                                                          -> nothing

The truth is not the plan alone: without a head the shares of other heads really change. So every state of the model is
also scored on 1,024 separate pairs, and the rule without its tests (the same set, hysteresis and materiality, on these
shares) gives the true events of each head. A planted event counts as found when headwatch reports it for that head at
its true probe. For untouched heads every event is counted, and separately those that are not true.
"""

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from planted_tables import SIZES_FROM, table, table_by_base, table_by_size, table_of_losses
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from headwatch import HeadHistory, HeadWatchCallback, ProbeSet, RunFolder, score_heads
from headwatch.demo.post_training import SftStage, train_sft
from headwatch.demo.pretraining import BaseStage, pretrain
from headwatch.demo.quiet import one_thread, quiet_libraries
from headwatch.demo.tiny_model import ModelSize, build_model, build_tokenizer, save
from headwatch.lives.states import OF_BASE, HeadState, advance, changed, event_kind, is_in
from headwatch.model.anatomy import Anatomy
from headwatch.stats import EvidenceSettings, carrying_set, membership, shares

SIZE = ModelSize(n_layers=4, n_heads=16, n_kv_heads=4, d_model=128, d_mlp=256)
STEPS, EVERY = 12, 2
N_TRUTH, TRUTH_SEED = 1024, 90_001
FAMILIES = ("addition", "carry")
CLEAR = 0.025  # planted changes of at least this part of the total |share| (five times min_change) make the headline
Head = tuple[int, int]
Scale = dict[Head, float]


@dataclass(frozen=True)
class Plant:
    """One planted head.

    Attributes:
        head: (layer, head).
        kind: one of the kinds above.
        scales: step -> scale of its columns from that step on (0: before the base probe).
    """

    head: Head
    kind: str
    scales: dict[int, float]

    def at(self, step: int) -> float:
        """The scale of the head's columns after `step` optimizer steps."""
        return [scale for start, scale in sorted(self.scales.items()) if start <= step][-1]


def draw_plan(rng: np.random.Generator, chosen: list[Head]) -> list[Plant]:
    """Random kinds and steps for the chosen heads; half of the steps are between probes."""
    plants = []
    for head, kind in zip(chosen, rng.permutation(["on", "on-off", "fade", "slow"] * 2)[: len(chosen)], strict=True):
        start = int(rng.integers(1, 7))
        if kind == "on":
            scales = {0: 0.0, start: 1.0}
        elif kind == "on-off":
            scales = {0: 0.0, start: 1.0, start + 5: 0.0}
        elif kind == "fade":  # over the steps of one interval between probes
            last = EVERY * -(-(start + 1) // EVERY)
            scales = {0: 1.0, last - 1: 0.5, last: 0.0}
        else:
            scales = {0: 1.0} | {start + k: 1.0 - (k + 1) / 6 for k in range(6)}
        plants.append(Plant(head, str(kind), scales))
    return plants


class Planter(TrainerCallback):
    """Edits o_proj's columns during training; must be registered before the headwatch callback."""

    def __init__(self, plants: list[Plant]) -> None:
        self.plants = plants

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Save the columns, and set the scales of the base."""
        self.anatomy = Anatomy.of(model)
        self.before = {plant.head: columns(model, self.anatomy, plant.head).clone() for plant in self.plants}
        self.set(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Set the scales of this step."""
        self.set(model, state.global_step)

    def set(self, model: Any, step: int) -> None:
        """Scale every planted head's columns as planned."""
        with torch.no_grad():
            for plant in self.plants:
                columns(model, self.anatomy, plant.head).copy_(plant.at(step) * self.before[plant.head])


def columns(model: Any, anatomy: Anatomy, head: Head) -> torch.Tensor:
    """The columns of o_proj that carry one head's output, a view."""
    width = anatomy.head_dim
    weight: torch.Tensor = model.model.layers[head[0]].self_attn.o_proj.weight
    return weight[:, head[1] * width : (head[1] + 1) * width]


# --- bases, truth, runs ---------------------------------------------------------------------------------------------


def base_model(folder: Path, seed: int) -> Path:
    """A base pretrained on careless sums (about a minute), or the existing one."""
    if not (folder / "config.json").is_file():
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, SIZE, seed=seed)
        pretrain(model, tokenizer, BaseStage(seed=seed))
        save(model, tokenizer, folder)
    return folder


Measured = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]  # [N, L, H], clean [N], corrupted [N]
Measure = Callable[[Any, ProbeSet], Measured]


def by_score(model: Any, probes: ProbeSet, **settings: Any) -> Measured:
    """Head scores of every pair, by the default rule or by other settings of `score_heads`."""
    scored = score_heads(model, probes, **settings)
    return scored.per_pair.numpy(), scored.readings.metric_clean.numpy(), scored.readings.metric_corrupted.numpy()


class States:
    """Measurements of any state of a base model on fixed pairs; each state is measured once.

    Args:
        base: folder of the base model.
        n_pairs: pairs per family.
        seed: of the pairs.
        measure: scores, or what they estimate.
    """

    def __init__(self, base: Path, n_pairs: int, seed: int, measure: Measure) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base)
        self.probes = ProbeSet.generate(list(FAMILIES), AutoTokenizer.from_pretrained(base), n_pairs=n_pairs, seed=seed)
        self.anatomy, self.measure = Anatomy.of(self.model), measure
        self.known: dict[tuple[Any, ...], list[Measured]] = {}

    def measured(self, scales: Scale) -> list[Measured]:
        """Of each family, with these heads' columns scaled."""
        key = tuple(sorted((head, scale) for head, scale in scales.items() if scale != 1.0))
        if key not in self.known:
            before = {head: columns(self.model, self.anatomy, head).clone() for head in scales}
            with torch.no_grad():
                for head, scale in scales.items():
                    columns(self.model, self.anatomy, head).copy_(scale * before[head])
                found = self.measure(self.model, self.probes)
                for head, values in before.items():
                    columns(self.model, self.anatomy, head).copy_(values)
            of_pair = np.array(self.probes.families)
            self.known[key] = [tuple(part[of_pair == family] for part in found) for family in FAMILIES]  # type: ignore
        return self.known[key]


class Truth(States):
    """Shares of any state of a base model, [L, H] per family, on pairs separate from the probe sets."""

    def __init__(self, base: Path, n_pairs: int = N_TRUTH, measure: Measure = by_score) -> None:
        super().__init__(base, n_pairs, TRUTH_SEED, measure)

    def shares(self, scales: Scale) -> NDArray[np.float64]:
        """[F, L, H] with these heads' columns scaled."""
        return np.stack([shares(*found).value for found in self.measured(scales)])


def candidates(share: NDArray[np.float64]) -> list[Head]:
    """Heads in the active set of some family with more than 1.5 % of the total |share|.

    Heads above 15 % in any family are excluded: without them the shares of many other heads really change.
    """
    part = np.abs(share) / np.abs(share).sum(axis=(1, 2), keepdims=True)
    clear = (carrying_set(share, 0.8) & (part > 0.015)).any(axis=0) & (part < 0.15).all(axis=0)
    return [(int(layer), int(head)) for layer, head in np.argwhere(clear)]


def run(base: Path, out: Path, plants: list[Plant], n_pairs: int, seed: int) -> None:
    """Train at a learning rate of 0 while the plan is executed and headwatch probes."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    probes = ProbeSet.generate(list(FAMILIES), tokenizer, n_pairs=n_pairs, seed=seed)
    watch = HeadWatchCallback(probes, every=EVERY, scoring={"edges": False}, wandb="off", strict=True)
    train_sft(
        base,
        out,
        SftStage(steps=STEPS, batch_size=2, learning_rate=0.0),
        callbacks=[Planter(plants), watch],
        seed=seed,
    )


# --- what is reported -----------------------------------------------------------------------------------------------

Events = set[tuple[int, int, int, str]]  # probe, layer, head, kind


def true_lives(share: NDArray[np.float64], settings: EvidenceSettings) -> Events:
    """The events of the rule where the shares [P, L, H] are known: only the set and materiality, no test."""
    threshold = settings.min_change * np.abs(share[0]).sum()
    member = membership(share[0], None, settings)
    state = np.where(member, HeadState.BASE, HeadState.INACTIVE)
    mark, events = share[0].copy(), set()
    for probe in range(1, len(share)):
        now, size = share[probe], np.abs(share[probe])
        member = membership(now, member, settings)
        since_mark, since_base = np.abs(now - mark) >= threshold, np.abs(now - share[0]) >= threshold
        of_base = is_in(state, OF_BASE)
        rise = member & since_mark & (size > np.abs(mark)) & (of_base | (since_base & (size > np.abs(share[0]))))
        fall = ~member & since_mark & (size < np.abs(mark)) & (~of_base | (since_base & (size < np.abs(share[0]))))
        following = advance(state, rise, fall)
        happened = changed(state, following)
        events |= {
            (probe, int(h[0]), int(h[1]), event_kind(state[tuple(h)], following[tuple(h)]))
            for h in np.argwhere(happened)
        }
        mark = np.where(happened, now, mark)
        state = following
    return events


Window = dict[tuple[int, int, str, int], tuple[int, int]]  # layer, head, kind, which time -> first and last probe


def in_order(events: Events) -> dict[tuple[int, int, str, int], int]:
    """Layer, head, kind and which time -> probe."""
    found: dict[tuple[int, int, str, int], int] = {}
    for probe, layer, head, kind in sorted(events):
        number = sum(key[:3] == (layer, head, kind) for key in found)
        found[layer, head, kind, number] = probe
    return found


def clear_lives(share: NDArray[np.float64], settings: EvidenceSettings) -> Window:
    """True events under every reasonable setting of the rule, with their first and last probe over the settings.

    For a head that is switched at once the two are equal; a head that fades slowly crosses the edge of the set earlier
    or later depending on where the edge is.
    """
    variants = [in_order(true_lives(share, settings))] + [
        in_order(true_lives(share, other))
        for other in (
            replace(settings, carry=settings.carry - 0.05, keep=settings.keep - 0.05),
            replace(settings, carry=min(settings.carry + 0.05, 1.0), keep=min(settings.keep + 0.05, 1.0)),
            replace(settings, min_change=2 * settings.min_change),
        )
    ]
    common = set.intersection(*(set(found) for found in variants))
    return {key: (min(found[key] for found in variants), max(found[key] for found in variants)) for key in common}


def moved_by(share: NDArray[np.float64], key: tuple[int, int, str, int], probe: int) -> float:
    """Size of the change of share, as a part of the base's total |share|.

    Measured from the base, or from the farthest earlier share for a head that had emerged and was pruned.
    """
    path = share[:, key[0], key[1]]
    if key[2] == "dropped":  # a slow fade goes on after the event
        change = np.abs(path[probe:] - path[0]).max()
    elif key[2] == "emerged":
        change = np.abs(path[probe] - path[0])
    else:
        change = np.abs(path[:probe] - path[probe]).max()
    return float(change / np.abs(share[0]).sum())


def reported(history: HeadHistory) -> Events:
    """The events of a history by probe."""
    return {(history.steps.index(e.step), e.layer, e.head, e.kind) for e in history.events}


def history_of(record: Any, family: str, pairs: NDArray[np.int64], settings: EvidenceSettings) -> HeadHistory:
    """The history of a recorded run if its probe set had only these pairs."""
    model = record.manifest["model"]
    history = HeadHistory(model["n_layers"], model["n_heads"], settings=settings, family=family)
    for step in record.steps:
        scores = record.read_scores(step)
        history.add(step, scores.head_scores[pairs], scores.metric_clean[pairs], scores.metric_corrupted[pairs])
    return history


@dataclass
class Count:
    """Planted and reported events, summed over families, plans and disjoint probe sets of one size."""

    sets: int = 0
    planted: int = 0  # clear true events of planted heads with a change of at least CLEAR
    found: int = 0  # of these, reported with the right kind at the right probe
    late: int = 0  # of these, reported with the right kind at another probe
    small: int = 0  # clear true events of planted heads with a smaller change
    small_found: int = 0  # of these, reported with the right kind at the right probe
    untouched: int = 0  # untouched heads, each counted once per probe set
    given: int = 0  # of these, with any event
    false: int = 0  # of these, with an event that is not true of that head at any probe
    no_signal: int = 0  # families and probe sets with insufficient signal at some probe
    by_size: dict[float, list[int]] = field(default_factory=dict)  # lower edge -> [planted events, those found]
    losses: dict[bool, list[int]] = field(
        default_factory=dict
    )  # detectable at the base or not -> [losses, those found]

    def add(self, plants: set[Head], share: NDArray[np.float64], history: HeadHistory) -> None:
        """Compare one history with the true shares [P, L, H]."""
        settings = history.settings
        if any(signal != "ok" for signal in history.signal):
            self.no_signal += 1
            return
        events, clear = reported(history), clear_lives(share, settings)
        timed = in_order(events)
        really = {(layer, head, kind) for _, layer, head, kind in true_lives(share, settings)}
        self.sets += 1
        for key, (first, last) in clear.items():
            if key[:2] not in plants:
                continue
            in_time = key in timed and first <= timed[key] <= last
            moved = moved_by(share, key, first)
            sized = self.by_size.setdefault(max(size for size in SIZES_FROM if size <= moved), [0, 0])
            sized[0] += 1
            sized[1] += in_time
            if key[2] == "dropped":
                lost = self.losses.setdefault(bool(history.detectable[0][key[:2]]), [0, 0])
                lost[0] += 1
                lost[1] += in_time
            if moved < CLEAR:
                self.small += 1
                self.small_found += in_time
            else:
                self.planted += 1
                self.found += in_time
                self.late += key in timed and not in_time
        others = [e for e in events if (e[1], e[2]) not in plants]
        self.untouched += share[0].size - len(plants)
        self.given += len({e[1:3] for e in others})
        self.false += len({e[1:3] for e in others if e[1:] not in really})

    def row(self) -> dict[str, float | int]:
        """The counts and their shares."""
        return {
            **vars(self),
            "found_share": self.found / max(self.planted, 1),
            "small_found_share": self.small_found / max(self.small, 1),
            "given_share": self.given / max(self.untouched, 1),
            "false_share": self.false / max(self.untouched, 1),
        }


def analyse(out: Path, sizes: tuple[int, ...], settings: EvidenceSettings, base: int | None = None) -> dict[int, Count]:
    """Counts of every recorded plan under these settings, by size of probe set (disjoint parts of the recorded pairs).

    base: only the plans of the base with this seed.
    """
    counts = {size: Count() for size in sizes}
    for plan in sorted(out.glob(f"plan-{'*' if base is None else base}-*/plan.json")):
        record = RunFolder.open(plan.parent)
        plants = {tuple(p["head"]) for p in json.loads(plan.read_text())["plants"]}
        truth = np.load(plan.parent / "truth.npy")  # [F, P, L, H]
        for family, share in zip(FAMILIES, truth, strict=True):
            pairs = record.pairs_of(family)
            for size in sizes:
                for start in range(0, len(pairs) - size + 1, size):
                    part = pairs[start : start + size]
                    counts[size].add(plants, share, history_of(record, family, part, settings))
    return counts


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "test t": {"test": "t"},
    "test sign-flip": {"test": "sign-flip"},
    "confirm either": {"confirm": "either"},
    "confirm level": {"confirm": "level"},
    "confirm next": {"confirm": "next"},
    "confirm none": {"confirm": "none"},
    "weights equal": {"weights": "equal"},
    "require_nonzero_share off": {"require_nonzero_share": False},
    "q 0.001": {"q": 0.001},
    "q 0.05": {"q": 0.05},
    "min_change 0": {"min_change": 0.0},
    "min_change 0.25 %": {"min_change": 0.0025},
    "min_change 1 %": {"min_change": 0.01},
    "carry 0.7, keep 0.8": {"carry": 0.7, "keep": 0.8},
    "carry 0.9, keep 0.95": {"carry": 0.9, "keep": 0.95},
    "no hysteresis": {"keep": 0.8},
    "keep 0.85": {"keep": 0.85},
}


def plan_options(description: str | None, plans: int, n_truth: int) -> argparse.ArgumentParser:
    """A parser with the options that benchmarks of planted changes share; the numbers are defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bases", type=int, default=3)
    parser.add_argument("--first-base", type=int, default=0, help="seed of the first base; the others follow")
    parser.add_argument("--plans", type=int, default=plans, help="per base")
    parser.add_argument("--heads", type=int, default=3, help="planted per plan")
    parser.add_argument("--n-pairs", type=int, default=256, help="per family; probe sets are parts of them")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--n-truth", type=int, default=n_truth)
    parser.add_argument("--only-analyse", action="store_true")
    return parser


def main() -> None:
    """Run the plans that do not exist yet, then analyse all."""
    parser = plan_options(__doc__, 3, N_TRUTH)
    parser.add_argument("--only-defaults", action="store_true", help="analyse only the default settings")
    options = parser.parse_args()
    logging.getLogger("headwatch").setLevel(logging.ERROR)
    with quiet_libraries(), one_thread():
        for seed in range(0 if options.only_analyse else options.bases):
            plant_base(options, options.first_base + seed)
    sizes = tuple(options.sizes)
    counts = {
        name: analyse(options.out, sizes, EvidenceSettings(**changes))
        for name, changes in VARIANTS.items()
        if name == "default" or not options.only_defaults
    }
    bases = sorted({int(plan.parent.name.split("-")[1]) for plan in options.out.glob("plan-*-*/plan.json")})
    by_base = {base: analyse(options.out, sizes, EvidenceSettings(), base) for base in bases}
    rows = {name: {size: c.row() for size, c in by_size.items()} for name, by_size in counts.items()}
    (options.out / "planted.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = "\n".join(
        [
            table(counts),
            f"By base, at the defaults:\n\n{table_by_base(by_base)}",
            f"By size of the change, as a part of the total |share|:\n\n{table_by_size(counts['default'])}",
            f"Losses of base heads, by whether they were detectable:\n\n{table_of_losses(counts['default'])}",
        ]
    )
    (options.out / "planted.md").write_text(text)
    print(text)


def plant_base(options: argparse.Namespace, seed: int) -> None:
    """Run all plans of one base."""
    base = base_model(options.out / f"base-{seed}", seed)
    truth, rng = Truth(base, options.n_truth), np.random.default_rng([seed, 7])
    possible = candidates(truth.shares({}))
    for number in range(options.plans):
        out = options.out / f"plan-{seed}-{number}"
        plants = draw_plan(rng, [possible[i] for i in rng.permutation(len(possible))[: options.heads]])
        if (out / "plan.json").is_file():
            continue
        run(base, out, plants, options.n_pairs, seed=1000 * seed + number)
        probes = range(0, STEPS + 1, EVERY)
        at = [truth.shares({plant.head: plant.at(step) for plant in plants}) for step in probes]
        np.save(out / "truth.npy", np.stack(at, axis=1))
        plan = {"seed": seed, "candidates": possible, "plants": [vars(plant) for plant in plants]}
        (out / "plan.json").write_text(json.dumps(plan) + "\n")
        print(f"base {seed}, plan {number}: {[(p.head, p.kind) for p in plants]}", flush=True)


if __name__ == "__main__":
    main()
