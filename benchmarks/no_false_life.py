"""False events where nothing changes: three null hypotheses, from real per-pair scores.

    python benchmarks/no_false_life.py signs RUN_FOLDER...     # recorded runs with random signs of the pairs
    python benchmarks/no_false_life.py fresh --model FOLDER    # one set of weights, a fresh probe set at every probe
    python benchmarks/no_false_life.py frozen --model FOLDER   # a real trainer at a learning rate of 0, frozen pairs

signs: the contribution of each pair to a change of share, v_i = influence now - influence at base + difference, is
real, with its tails, outliers and correlations between heads and between probes; a random sign per pair makes the true
change zero. Reported: how often any head is called changed (under this null the false-discovery rate), and the events
per run, by test and by correction over probes. Detection: the same scores with a share of the total added to some heads
from one probe on.
fresh: pairs differ from probe to probe, so the test is unpaired (settings.test "welch").
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwatch import HeadHistory, HeadWatchCallback, ProbeSet, RunFolder, score_heads
from headwatch.stats import Estimate, EvidenceSettings, change, membership, shares, significant_and_material

Floats = NDArray[np.float64]


# --- permuted signs -------------------------------------------------------------------------------------------------


def recorded(folder: str, family: str) -> list[Estimate]:
    """Shares of every probe of a run, with their influences."""
    run = RunFolder.open(folder)
    pairs = run.pairs_of(family)
    found = []
    for step in run.steps:
        scores = run.read_scores(step)
        arrays = (scores.head_scores, scores.metric_clean, scores.metric_corrupted)
        found.append(shares(*(np.asarray(a, np.float64)[pairs] for a in arrays)))
    return found


def null_run(rng: np.random.Generator, probes: list[Estimate], n_pairs: int, fresh_signs: bool) -> list[Estimate]:
    """The run with a random sign per pair, the same at every probe or a new one each time (`fresh_signs`)."""
    rows = rng.permutation(len(probes[0].influence))[:n_pairs]
    base = Estimate(probes[0].value, probes[0].influence[rows], probes[0].resolution)
    found, signs = [base], rng.choice([-1.0, 1.0], n_pairs)[:, None, None]
    for probe in probes[1:]:
        if fresh_signs:
            signs = rng.choice([-1.0, 1.0], n_pairs)[:, None, None]
        v = signs * (probe.influence - probes[0].influence + probe.value - probes[0].value)[rows]
        moved = v.mean(axis=0)
        found.append(Estimate(base.value + moved, base.influence + v - moved, probe.resolution))
    return found


def planted_run(null: list[Estimate], heads: NDArray[np.bool_], size: float, at: int) -> list[Estimate]:
    """The null run with |share| larger by `size` in some heads from probe `at` on."""
    sign = np.where(null[0].value >= 0.0, 1.0, -1.0)
    return [
        Estimate(probe.value + size * sign * heads * (index >= at), probe.influence, probe.resolution)
        for index, probe in enumerate(null)
    ]


def first_events(probes: list[Estimate], settings: EvidenceSettings) -> tuple[int, list[NDArray[np.bool_]], list[bool]]:
    """Number of heads with an event; per probe, heads changed at that probe's level; per probe, any changed at q."""
    threshold = settings.min_change * float(np.abs(probes[0].value).sum())
    member = membership(probes[0].value, None, settings)
    base, before, with_event = member, np.zeros(member.shape, np.bool_), np.zeros(member.shape, np.bool_)
    changed, any_at_q = [], []
    for index, probe in enumerate(probes[1:], start=1):
        found = change(probes[0], probe, settings)
        any_at_q.append(bool((found.q_value <= settings.q).any()))
        member = membership(probe.value, member, settings)
        stronger = np.abs(probe.value) > np.abs(probes[0].value)
        crossed = np.where(base, ~member & ~stronger, member & stronger)
        at_once, waiting = settings.levels(index)
        likely = significant_and_material(found, max(at_once, waiting), threshold)
        with_event |= crossed & (significant_and_material(found, at_once, threshold) | (likely & before))
        before = crossed & likely
        changed.append(likely)
    return int(with_event.sum()), changed, any_at_q


def signs(folders: list[str], runs: int, sizes: list[int], seed: int) -> dict[str, Any]:
    """False discoveries and events per run, and detection, by test and correction over probes."""
    options = [(test, confirm) for test in ("t", "sign-flip") for confirm in ("none", "level", "next", "either")]
    rows: dict[str, dict[str, float]] = {}
    sources = [
        (name, recorded(folder, family))
        for folder in folders
        for family in RunFolder.open(folder).families
        for name in [
            f"{Path(folder).resolve().parent.name if Path(folder).name == 'headwatch' else Path(folder).name}/{family}"
        ]
    ]
    for name, probes in sources:
        for n_pairs in [n for n in sizes if n <= len(probes[0].influence)]:
            for test, confirm in options:
                settings = EvidenceSettings(test=test, confirm=confirm)
                rng = np.random.default_rng([seed, n_pairs])
                discoveries, events, found, at_once = [], [], [], []
                for number in range(runs):
                    null = null_run(rng, probes, n_pairs, fresh_signs=number % 2 == 1)
                    n_events, _, any_at_q = first_events(null, settings)
                    discoveries += any_at_q
                    events.append(n_events)
                    heads = np.zeros(null[0].value.shape, np.bool_)
                    heads.flat[rng.permutation(heads.size)[:10]] = True
                    at = 1 + int(rng.integers(max(len(null) - 2, 1)))
                    size = 0.02 * float(np.abs(null[0].value).sum())
                    _, changed, _ = first_events(planted_run(null, heads, size, at), settings)
                    at_once.append(changed[at - 1][heads].mean())
                    found.append(np.any(changed[at - 1 :], axis=0)[heads].mean())
                rows[f"{name}, {n_pairs} pairs, {test}, {confirm}"] = {
                    "runs": runs,
                    "probes": len(probes) - 1,
                    "any_discovery_per_probe_at_q": float(np.mean(discoveries)),
                    "false_events_per_run": float(np.mean(events)),
                    "runs_with_a_false_event": float(np.mean([e > 0 for e in events])),
                    "planted_2_percent_found_at_once": float(np.mean(at_once)),
                    "planted_2_percent_found_ever": float(np.mean(found)),
                }
                print(
                    f"{name}, {n_pairs} pairs, {test}, {confirm}",
                    rows[f"{name}, {n_pairs} pairs, {test}, {confirm}"],
                    flush=True,
                )
    return rows


# --- the same weights -----------------------------------------------------------------------------------------------


def fresh(model_folder: str, n_probes: int, sizes: list[int], families: list[str], repeats: int) -> dict[str, Any]:
    """Events per head and probe of one model probed with fresh pairs at every probe, tested unpaired."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    rows: dict[str, Any] = {}
    largest = max(sizes)
    for family in families:
        scored = [
            score_heads(model, ProbeSet.generate(family, tokenizer, n_pairs=largest, seed=5000 + index))
            for index in range(n_probes * repeats)
        ]
        for size in sizes:
            events = head_probes = without_signal = 0
            for repeat in range(repeats):
                mine = scored[repeat * n_probes : (repeat + 1) * n_probes]
                history = HeadHistory(*scored[0].per_pair.shape[1:], settings=EvidenceSettings(test="welch"))
                for step, scores in enumerate(mine):
                    read = scores.readings
                    history.add(
                        step,
                        scores.per_pair.numpy()[:size],
                        read.metric_clean.numpy()[:size],
                        read.metric_corrupted.numpy()[:size],
                    )
                events += len(history.events)
                without_signal += history.signal.count("insufficient signal")
                head_probes += (n_probes - 1) * history.n_layers * history.n_heads
            rows[f"{family}, {size} pairs"] = {
                "head_probes": head_probes,
                "events": events,
                "share": events / head_probes,
                "probes_without_signal": without_signal,
            }
            print(f"{family}, {size} pairs", rows[f"{family}, {size} pairs"], flush=True)
    return rows


def frozen(model_folder: str, steps: int, n_pairs: int, families: list[str]) -> dict[str, Any]:
    """Events of a real SFT run at a learning rate of 0."""
    from headwatch.demo.post_training import SftStage, train_sft

    with tempfile.TemporaryDirectory() as out:
        watch = HeadWatchCallback(
            families, every=2, n_pairs=n_pairs, scoring={"edges": False}, wandb="off", strict=True
        )
        train_sft(model_folder, out, SftStage(steps=steps, batch_size=2, learning_rate=0.0), callbacks=[watch])
        return {
            family: {
                "probes": len(history.steps),
                "events": len(history.events),
                "changed": int(history.strengthened.sum() + history.weakened.sum()),
                "smallest_p": float(np.nanmin(history.change("share").p_value)),
            }
            for family, history in watch.histories.items()
        }


def main() -> None:
    """Run one of the three and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["signs", "fresh", "frozen"])
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--families", nargs="+", default=["addition", "carry"])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--probes", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what == "signs":
        rows = signs(options.folders, options.runs, options.sizes, options.seed)
    elif options.what == "fresh":
        rows = fresh(options.model, options.probes, options.sizes, options.families, options.repeats)
    else:
        rows = frozen(options.model, 12, min(options.sizes), options.families)
    text = json.dumps(rows, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
