"""One command for any CUDA machine: exactness, bit-identical trainings and times of a probe, as JSON and as a table.

    make gpu                                          # or: python benchmarks/gpu.py --out gpu-results
    python benchmarks/gpu.py --out gpu-results --model Qwen/Qwen2.5-Math-1.5B    # pretrained weights instead of random

Without a CUDA device it stops with one line. Its parts, each recorded with its error where it fails:

- tests: the attribution tests that compare with the naive reference, and the trainings that must be bit-identical;
- exactness: heads and edges in float32 on the device against the CPU in float64, and bf16 against float32;
- passes: Qwen2.5-Math-1.5B's shape in bf16, 64 openers and 64 arithmetic pairs, heads and edges, next to the floor and
  the modelled time (gpu_model.py), and whether repeated passes of equal weights are equal to the last bit.

This script has not been run on a GPU yet.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attribution import floor, random_pairs
from gpu_model import DEVICES, SHAPES, count_pass, meta_model, modelled_seconds
from transformers import AutoModelForCausalLM, LlamaConfig

from headwatch import ProbeSet, score_edges, score_heads
from headwatch.attribution.settings import ScoringSettings
from headwatch.version import versions

SCORES = {"heads": score_heads, "edges": score_edges}
PROBES = {"openers (200 + 16)": (200, 16), "arithmetic (32)": (0, 32)}
TESTS = ("tests/attribution", "tests/end_to_end/test_no_trace.py", "tests/end_to_end/test_quantised.py")


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error over the largest entry."""
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def exactness(device: str) -> dict[str, float]:
    """Errors of a small model on the device, by kind of score and dtype."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=512,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    probes = random_pairs(512, 8, 40, 12, seed=0)
    expected = {kind: score(model.double(), probes).per_pair for kind, score in SCORES.items()}
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        moved = model.to(device, dtype)
        for kind, score in SCORES.items():
            found[f"{kind}, {str(dtype).removeprefix('torch.')}"] = largest_error(
                score(moved, probes).per_pair, expected[kind]
            )
    return found


def timed(run: Callable[[], Any], rounds: int = 5) -> list[float]:
    """Seconds of each of several runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def passes(model: Any, pairs: int) -> dict[str, Any]:
    """Times, memory, modelled time and repeatability of every kind of pass."""
    name = min(DEVICES, key=lambda known: known.split()[0].lower() not in torch.cuda.get_device_name().lower())
    shape = meta_model(model.config)
    found = {}
    for label, (prefix, suffix) in PROBES.items():
        probes: ProbeSet = random_pairs(model.config.vocab_size, pairs, prefix, suffix, seed=0)
        found[f"{label}, floor"] = {"seconds": timed(lambda p=probes: floor(model, p, 5, 16), 3)}
        for kind, score in SCORES.items():
            scores: list[Any] = []
            seconds = timed(lambda s=score, p=probes, out=scores: out.append(s(model, p)))
            counts = count_pass(shape, probes, ScoringSettings(edges=kind == "edges", batch_size=pairs))
            found[f"{label}, {kind}"] = {
                "seconds": seconds,
                "peak_mib": scores[-1].peak_memory_mb if kind == "heads" else scores[-1].heads.peak_memory_mb,
                "bit_identical": all(torch.equal(one.per_pair, scores[0].per_pair) for one in scores),
                "modelled_for": name,
                "modelled_seconds": modelled_seconds(counts, DEVICES[name]),
            }
    return found


def tests() -> dict[str, Any]:
    """Outcome of the tests on this machine."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], capture_output=True, text=True, check=False)
    return {"passed": done.returncode == 0, "last_line": done.stdout.strip().splitlines()[-1:]}


def table(results: dict[str, Any]) -> str:
    """The times as markdown."""
    lines = ["| probe | median | modelled | bit-identical | peak |", "| --- | --- | --- | --- | --- |"]
    for name, entry in results.get("passes", {}).items():
        if not isinstance(entry, dict) or "seconds" not in entry:
            continue
        median = sorted(entry["seconds"])[len(entry["seconds"]) // 2]
        modelled = f"{entry['modelled_seconds']:.3f} s" if "modelled_seconds" in entry else ""
        peak = f"{entry['peak_mib'] / 1024:.1f} GiB" if entry.get("peak_mib") else ""
        lines.append(f"| {name} | {median:.3f} s | {modelled} | {entry.get('bit_identical', '')} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="a folder for results.json and table.md")
    parser.add_argument("--model", help="pretrained weights; by default random ones of Qwen2.5-Math-1.5B's shape")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--skip-tests", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("make gpu needs a CUDA device, and torch finds none; modelled times: python benchmarks/gpu_model.py")
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "versions": versions()}

    def passes_of_model() -> dict[str, Any]:
        loading = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        with torch.device("cuda"):
            if options.model:
                model = AutoModelForCausalLM.from_pretrained(options.model, **loading)
            else:
                model = AutoModelForCausalLM.from_config(SHAPES["qwen2.5-math-1.5b"](), **loading)
        return passes(model.eval().requires_grad_(False), options.pairs)

    parts: dict[str, Callable[[], Any]] = {"exactness": lambda: exactness("cuda"), "passes": passes_of_model}
    if not options.skip_tests:
        parts["tests"] = tests
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        try:
            results[name] = part()
        except Exception as error:  # one part that fails must not cost the others
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name}: {json.dumps(results[name])}", flush=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(table(results) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
