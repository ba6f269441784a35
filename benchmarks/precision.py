"""Scores in 16 bits against float32, on pretrained models: how far they move, and what that changes.

    python benchmarks/precision.py MODEL ... [--pairs 32] [--families addition recall]

One row per model, family and precision: the correlation of the edges' mean scores with float32's, the largest errors of
head and edge scores over the largest float32 score, the overlap (Jaccard) of the circuits' heads and of the active
sets, and the pass's own two checks. "autocast" is bf16 autocast over float32 weights, the trainers' default.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch import Circuit, EdgeScores, EvidenceSettings, ProbeSet, score_edges
from headwatch.stats import membership, shares

PRECISIONS = {"float32": torch.float32, "autocast": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


COLUMNS = (
    *("model", "family", "precision", "correlation of edges", "head error", "edge error"),
    *("circuit", "active set", "stream check", "row sums"),
)


def scored(folder: str, precision: str, probes: ProbeSet) -> EdgeScores:
    """One model's scores in one precision."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=PRECISIONS[precision])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        return score_edges(model, probes)


def active(scores: EdgeScores) -> set[tuple[int, int]]:
    """The evidence rule's active set."""
    heads = scores.heads
    share = shares(heads.per_pair.numpy(), heads.readings.metric_clean.numpy(), heads.readings.metric_corrupted.numpy())
    found = membership(share.value, None, EvidenceSettings())
    return {(int(layer), int(head)) for layer, head in np.argwhere(found)}


def jaccard(one: frozenset[tuple[int, int]] | set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    """|intersection| / |union|."""
    return len(one & other) / max(1, len(one | other))


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, over the largest expected entry."""
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders with pretrained weights")
    parser.add_argument("--pairs", type=int, default=32, help="pairs per family")
    parser.add_argument("--families", nargs="+", default=["addition", "recall"])
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("| --- " * len(COLUMNS) + "|")
    for folder in arguments.models:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for family in arguments.families:
            probes = ProbeSet.generate(family, tokenizer, n_pairs=arguments.pairs)
            exact = scored(folder, "float32", probes)
            for precision in PRECISIONS:
                try:
                    found = exact if precision == "float32" else scored(folder, precision, probes)
                except RuntimeError as error:
                    print(f"| {Path(folder).name} | {family} | {precision} | {error} | | | | | | |", flush=True)
                    continue
                edges, expected = found.mean(), exact.mean()
                real = exact.is_real
                correlation = torch.corrcoef(torch.stack([edges[real], expected[real]]))[0, 1]
                circuits = [Circuit.select(scores, 0.027).heads for scores in (found, exact)]
                cells = (
                    *(Path(folder).name, family, precision, f"{correlation:.4f}"),
                    f"{largest_error(found.heads.mean(), exact.heads.mean()):.4f}",
                    f"{largest_error(edges, expected):.4f}",
                    f"{jaccard(circuits[0], set(circuits[1])):.2f}",
                    f"{jaccard(active(found), active(exact)):.2f}",
                    *(f"{found.checks.stream:.1e}", f"{found.checks.row_sums:.1e}"),
                )
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
