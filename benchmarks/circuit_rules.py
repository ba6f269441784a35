"""Circuits of edges under each rule for the points at which gradients are taken: are they equally faithful?

    python benchmarks/circuit_rules.py --model FOLDER --families recall sums --pairs 16 --json OUT.json
    python benchmarks/circuit_rules.py --tables *.json

Half of the pairs selects the edges, the strongest by mean |score|, at the ten sizes of
`headwatch.analysis.faithfulness`; the other half evaluates the circuits, all other edges being corrupted exactly. Then
the halves change places. The table has the means of both directions, and faithfulness at three small sizes. CPU seconds
are those of a pass with edges, per pair.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scores import RULES, rule_options
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwatch import ProbeSet, score_edges
from headwatch.analysis.faithfulness import faithfulness_curve

SMALL = (0.005, 0.01, 0.02)  # sizes whose faithfulness the table shows


def curves(model: Any, probes: ProbeSet, metric: str, rule: str, by: str) -> dict[str, Any]:
    """The curves of one rule, each half of the pairs selecting once, and the cost of a pass."""
    halves = [probes.select(list(range(first, len(probes), 2))) for first in (0, 1)]
    began = time.process_time()
    scored = [score_edges(model, half, metric, **RULES[rule]) for half in halves]
    seconds = (time.process_time() - began) / len(probes)
    found = [
        faithfulness_curve(model, other, edges, by=by, controls=0).to_json()
        for edges, other in zip(scored, halves[::-1], strict=True)
    ]
    return {"family": probes.families[0], "metric": metric, "rule": rule, "seconds": seconds, "curves": found}


def faithfulness_at(curve: dict[str, Any], size: float) -> float:
    """Faithfulness of the circuit with this share of the edges."""
    return next(float(row["faithfulness"]) for row in curve["curve"] if row["size"] == size)


def table(files: list[Path]) -> str:
    """Markdown: one row per model, family, metric and rule; means of both directions, and the CMD of each."""
    sizes = " | ".join(f"{size:.1%}" for size in SMALL)
    lines = [
        f"| model, family, metric | rule | CPR | CMD | CMD of each half | {sizes} | CPU s |",
        "| --- " * (6 + len(SMALL)) + "|",
    ]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        for row in found["rows"]:
            both = row["curves"]
            cpr, cmd = (float(np.mean([curve[name] for curve in both])) for name in ("cpr", "cmd"))
            each = ", ".join(f"{curve['cmd']:.3f}" for curve in both)
            kept = (float(np.mean([faithfulness_at(curve, size) for curve in both])) for size in SMALL)
            cells = [f"{cpr:.3f}", f"{cmd:.3f}", each, *(f"{value:.2f}" for value in kept), f"{row['seconds']:.2f}"]
            name = f"{found['model']}, {row['family']}, {row['metric']}"
            lines.append(f"| {name} | {row['rule']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    rules = [rule for rule in RULES if rule != "clean"]
    parser = rule_options(__doc__, ["recall", "sums"], rules, "of which half selects and half evaluates", 16)
    parser.add_argument("--by", default="mean_abs", help="ranking of the edges (headwatch.circuits.selection)")
    options = parser.parse_args()
    if options.tables:
        print(table(options.tables))
        return
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows: list[dict[str, Any]] = []
    for family in options.families:
        probes = ProbeSet.generate(family, tokenizer, n_pairs=options.pairs, seed=options.seed)
        for metric in options.metrics:
            for rule in options.rules:
                if metric == "kl" and rule == "clean":
                    continue
                began = time.process_time()
                rows.append(curves(model, probes, metric, rule, options.by))
                areas = [(curve["cpr"], curve["cmd"]) for curve in rows[-1]["curves"]]
                print(family, metric, rule, areas, f"{time.process_time() - began:.0f} CPU s", flush=True)
                if options.json:
                    found = {"model": Path(options.model).name, "by": options.by, "rows": rows}
                    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
