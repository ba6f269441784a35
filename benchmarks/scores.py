"""Which score predicts best what switching a head off does? Rules against exact activation patching, on real weights.

    python benchmarks/scores.py --model FOLDER --families addition recall --pairs 8 --metrics logit_diff kl
    python benchmarks/scores.py --model FOLDER --families openers --questions FILE.jsonl --metrics kl --no-circuit
    python benchmarks/scores.py --tables results/*.json

For every pair and every head, the exact change of the metric: the head's output taken from the corrupted run in the
clean run, and the reverse; the mean of both directions. Compared with the scores of each rule, all as means over pairs:

- agreement: Spearman correlation over heads with the exact changes;
- top: how many of the 10 heads with the largest exact |change| are among the rule's 10;
- replication: Spearman correlation over heads between two halves of other pairs (4 times as many);
- circuit: share of the metric gap that the clean run keeps when all heads but the rule's first k take the corrupted
  run's outputs, k = 5, 10, 20, 40 % of the heads, mean over k. The MLPs stay in the model: a curve over heads, not the
  CPR of edges;
- completeness: error of the sum of the `input` scores as the change of the metric;
- CPU seconds per pair, in a pass of all pairs that scores heads.

Circuits of edges are compared by circuit_rules.py, events by event_rules.py, planted changes by planted_rules.py.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch import Anatomy, ProbeSet, patch_heads, score_heads
from headwatch.attribution.metrics import METRICS, Reads
from headwatch.model.hooks import hooked
from headwatch.probes.openers import Openers

RULES: dict[str, dict[str, Any]] = {
    "midpoint, m = 5": {"alphas": "midpoint", "steps": 5},
    "midpoint, m = 2": {"alphas": "midpoint", "steps": 2},
    "right, m = 5 (the paper)": {"alphas": "right", "steps": 5},
    "ends": {"alphas": "ends"},
    "clean": {"alphas": "clean"},
}
KEPT = (0.05, 0.1, 0.2, 0.4)


class Runs:
    """The runs of one pair, without padding: clean, corrupted, and clean with heads from the corrupted one."""

    def __init__(self, model: Any, anatomy: Anatomy, probes: ProbeSet, pair: int) -> None:
        self.model, self.anatomy = model, anatomy
        real = probes.attention_mask[pair].bool()
        self.ids = {"clean": probes.clean[pair, real], "corrupted": probes.corrupted[pair, real]}
        present = probes.read_positions[pair] >= 0
        self.columns = probes.read_positions[pair, present] - int(real.int().argmax())
        self.reads = Reads(
            probes.answers[[pair]],
            probes.targets[[pair]][:, present],
            torch.ones(1, len(self.columns), dtype=torch.bool),
        )
        self.z: dict[str, list[Tensor]] = {}
        self.logits = {name: self._whole(name) for name in self.ids}

    def _whole(self, name: str) -> Tensor:
        """Run one prompt; keep its heads' outputs in each layer."""
        z: list[Tensor] = []
        handles = [
            layer.out.register_forward_pre_hook(lambda m, args: z.append(args[0])) for layer in self.anatomy.layers
        ]
        with hooked(*handles):
            logits = self.model(input_ids=self.ids[name][None], use_cache=False).logits[:, self.columns]
        self.z[name] = z
        return logits

    def value(self, metric: str, logits: Tensor) -> Tensor:
        """The metric of runs, [runs]."""
        n = len(logits)
        return METRICS[metric](logits, self.logits["clean"].expand(n, -1, -1), self.reads.repeat(n))

    def with_heads(self, kept: np.ndarray[Any, Any]) -> Tensor:
        """Logits of the clean run, all heads but those kept [L, H] taken from the corrupted run."""

        def replace(index: int) -> Any:
            mask = torch.from_numpy(kept[index]).repeat_interleave(self.anatomy.head_dim)
            return lambda module, args: (torch.where(mask, args[0], self.z["corrupted"][index]),)

        with hooked(*(layer.out.register_forward_pre_hook(replace(i)) for i, layer in enumerate(self.anatomy.layers))):
            return self.model(input_ids=self.ids["clean"][None], use_cache=False).logits[:, self.columns]


def exact(
    model: Any, probes: ProbeSet, metrics: list[str]
) -> tuple[dict[str, dict[str, np.ndarray[Any, Any]]], dict[str, float]]:
    """Exact changes by metric and direction, means over pairs [L, H], and CPU seconds per pair by metric."""
    anatomy = Anatomy.of(model)
    found, seconds = {}, {}
    for metric in metrics:
        began = time.process_time()
        patched = patch_heads(model, probes, metric=metric)
        seconds[metric] = (time.process_time() - began) / len(probes)
        by_direction = {"noising": patched.noising, "denoising": patched.denoising, "both": patched.per_pair}
        found[metric] = {
            name: effects.mean(0).reshape(anatomy.n_layers, anatomy.n_heads).numpy()
            for name, effects in by_direction.items()
            if effects is not None
        }
    return found, seconds


def circuit(pairs: list[Runs], metric: str, score: np.ndarray[Any, Any], base: list[float]) -> float:
    """Share of the metric gap that is kept with the rule's first heads alone, mean over their number.

    base: the metric of each pair with no head kept.
    """
    order = np.argsort(-np.abs(score), axis=None)
    whole = sum(float(runs.value(metric, runs.logits["clean"])) for runs in pairs) - sum(base)
    shares = []
    for part in KEPT:
        kept = np.zeros(score.size, np.bool_)
        kept[order[: max(1, round(part * score.size))]] = True
        values = [float(runs.value(metric, runs.with_heads(kept.reshape(score.shape)))) for runs in pairs]
        shares.append((sum(values) - sum(base)) / whole)
    return float(np.mean(shares))


def correlation(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def compare(
    model: Any, every: ProbeSet, metrics: list[str], rules: list[str], with_circuit: bool = True
) -> list[dict[str, Any]]:
    """One row per metric and rule; a fifth of the pairs is compared with patching, the others show replication."""
    anatomy, n_pairs = Anatomy.of(model), len(every) // 5
    probes, *halves = (
        every.select(list(range(first, stop)))
        for first, stop in ((0, n_pairs), (n_pairs, 3 * n_pairs), (3 * n_pairs, 5 * n_pairs))
    )
    rows = []
    model.eval().requires_grad_(False)
    with torch.no_grad():
        pairs = [Runs(model, anatomy, probes, pair) for pair in range(n_pairs)] if with_circuit else []
        truth, patching_seconds = exact(model, probes, metrics)
        for metric in metrics:
            both = truth[metric]["both"]
            none = np.zeros(both.shape, np.bool_)
            base = [float(runs.value(metric, runs.with_heads(none))) for runs in pairs]
            best = circuit(pairs, metric, both, base) if pairs else None
            strongest = set(np.argsort(-np.abs(both), axis=None)[:10].tolist())
            for rule in rules:
                if metric == "kl" and rule == "clean":
                    continue
                how = RULES[rule]
                began = time.process_time()
                scores = score_heads(model, probes, metric, **how)
                seconds = (time.process_time() - began) / n_pairs
                mean = scores.mean().numpy()
                two = [score_heads(model, half, metric, **how).mean().numpy() for half in halves]
                row = {
                    "family": every.families[0],
                    "metric": metric,
                    "rule": rule,
                    "pairs": n_pairs,
                    "accuracy": float(scores.readings.correct.float().mean()),
                    **{f"agreement_{name}": correlation(mean, exactly) for name, exactly in truth[metric].items()},
                    "top": len(strongest & set(np.argsort(-np.abs(mean), axis=None)[:10].tolist())),
                    "replication": correlation(*two),
                    "circuit": circuit(pairs, metric, mean, base) if pairs else None,
                    "circuit_exact": best,
                    "completeness": scores.checks.completeness,
                    "seconds": seconds,
                    "patching_seconds": patching_seconds[metric],
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def table(files: list[Path]) -> str:
    """A markdown table of results, one row per model, family, metric and rule."""
    columns = ("both", "noising", "denoising")
    lines = [
        "| model, family, metric | rule | agreement | noising | denoising | top 10 | replication | circuit | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        for row in found["rows"]:
            agreement = " | ".join(f"{row[f'agreement_{name}']:.3f}" for name in columns)
            kept = "" if row["circuit"] is None else f"{row['circuit']:.2f} (exact {row['circuit_exact']:.2f})"
            lines.append(
                f"| {found['model']}, {row['family']}, {row['metric']} | {row['rule']} | {agreement} | {row['top']} | "
                f"{row['replication']:.3f} | {kept} | {row['seconds']:.2f} |"
            )
    return "\n".join(lines)


def rule_options(description: str | None, families: list[str], rules: list[str], pairs: str, n: int) -> Any:
    """A parser with the options that benchmarks of rules share; pairs: what the number of pairs means, by default n."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or a name on the Hub")
    parser.add_argument("--families", nargs="+", default=families)
    parser.add_argument("--metrics", nargs="+", default=["logit_diff", "kl"])
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=rules)
    parser.add_argument("--pairs", type=int, default=n, help=pairs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--tables", type=Path, nargs="+", help="print the table of these files instead")
    return parser


def main() -> None:
    pairs = "compared with patching; four times as many are scored"
    parser = rule_options(__doc__, ["addition", "recall"], list(RULES), pairs, 8)
    parser.add_argument("--questions", help="a .jsonl file of questions: for the family openers (fixed texts, kl)")
    parser.add_argument("--no-circuit", action="store_true", help="leave the circuits out")
    options = parser.parse_args()
    if options.tables:
        print(table(options.tables))
        return
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows: list[dict[str, Any]] = []
    for family in options.families:
        if family == "openers":
            openers = Openers(questions=options.questions, source="fixed")
            every = openers.make(tokenizer, 5 * options.pairs, options.seed)
        else:
            every = ProbeSet.generate(family, tokenizer, n_pairs=5 * options.pairs, seed=options.seed)
        rows += compare(model, every, options.metrics, options.rules, not options.no_circuit)
        if options.json:
            found = {"model": Path(options.model).name, "rows": rows}
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
