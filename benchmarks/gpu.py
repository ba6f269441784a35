"""One command for any CUDA machine: exactness, bit-identical trainings and times of a probe, as JSON and as a table.

    make gpu                                          # or: python benchmarks/gpu.py --out gpu-results
    python benchmarks/gpu.py --out gpu-results --model Qwen/Qwen2.5-Math-1.5B    # pretrained weights instead of random

Without a CUDA device it stops with one line. Its parts, each recorded with its error where it fails:

- tests: the attribution tests that compare with the naive reference, and the trainings that must be bit-identical;
- exactness: heads and edges in float32 and bf16 on the device against the CPU in float64, with kernels and without;
- flash: FlashAttention 2 against sdpa in bf16; one line where flash_attn is not installed;
- passes: Qwen2.5-Math-1.5B's shape in bf16, 64 openers and 64 arithmetic pairs, heads and edges, with kernels and
  without, next to the floor and the modelled time (gpu_model.py), and whether repeated passes of equal weights are
  equal to the last bit;
- circuits: the circuits of one family from edges that stayed on the device against those on the CPU, and the time of
  what the device computes for them;
- budget: the default memory budget, and what the measured memory of the largest batch makes of it;
- trial: what kernels="auto" measures and decides on these probes (kernel_trial.py);
- graphs: passes in batches of 8 pairs with CUDA graphs (scoring.cuda_graphs) and without: times, largest difference of
  the scores, and the memory that the graphs keep;
- profile: torch.profiler's tables of one pass with edges, with kernels and without, in profile-*.txt;
- recipe, with --recipe STEPS: the SmolLM2-135M recipe (SFT on GSM8K), a real training of so many steps with probes. It
  downloads the model and the rows.

This script has not been run on a GPU yet.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from attribution import floor, random_pairs
from gpu_model import DEVICES, SHAPES, count_pass, meta_model, modelled_seconds
from transformers import AutoModelForCausalLM, LlamaConfig

from headwatch import ProbeSet, score_edges, score_heads
from headwatch.attribution import EdgeScores, HeadScores
from headwatch.attribution.batch_size import default_budget_gb, free_bytes
from headwatch.attribution.calibration import measured_budget
from headwatch.attribution.graphs import BatchGraphs, CudaCapture
from headwatch.attribution.kernel_trial import difference_of, try_parts
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings
from headwatch.attribution.tolerance import limit_of
from headwatch.circuits.selection import graph_of
from headwatch.circuits.stability import EdgeStatistics, circuits_of_statistics, edge_statistics, real_edges
from headwatch.kernels.launch import installed
from headwatch.record.run_folder import RunFolder
from headwatch.version import versions

SCORES = {"heads": score_heads, "edges": score_edges}
PROBES = {"openers (200 + 16)": (200, 16), "arithmetic (32)": (0, 32)}
RECIPE = Path(__file__).parents[1] / "recipes/smollm2-135m/sft_gsm8k.yaml"
TESTS = (
    "tests/kernels",
    "tests/attribution",
    "tests/monitor/test_run_graphs.py",
    "tests/end_to_end/test_no_trace.py",
    "tests/end_to_end/test_quantised.py",
)


def kernel_choices() -> tuple[str, ...]:
    """Without kernels, and with them where triton is installed."""
    return ("torch", "triton") if installed() else ("torch",)


def small_model(**options: Any) -> Any:
    """A random Llama of four layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=512,
    )
    return AutoModelForCausalLM.from_config(config, **options).eval()


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error over the largest entry."""
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def exactness(device: str) -> dict[str, float]:
    """Errors of a small model on the device, by kind of score and dtype."""
    model, probes = small_model(), random_pairs(512, 8, 40, 12, seed=0)
    expected = {kind: score(model.double(), probes).per_pair for kind, score in SCORES.items()}
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        moved = model.to(device, dtype)
        for kind, score in SCORES.items():
            for kernels in kernel_choices():
                own = score(moved, probes, kernels=kernels).per_pair
                name = f"{kind}, {str(dtype).removeprefix('torch.')}, {kernels}"
                found[name] = largest_error(own, expected[kind])
    return found


def flash() -> dict[str, float] | str:
    """Errors of bf16 scores with FlashAttention 2 and with sdpa, both against float32 with sdpa."""
    if importlib.util.find_spec("flash_attn") is None:
        return "not checked: flash_attn is not installed"
    probes, found = random_pairs(512, 8, 40, 12, seed=0), {}
    expected = {kind: score(small_model().cuda(), probes).per_pair for kind, score in SCORES.items()}
    for attention in ("sdpa", "flash_attention_2"):
        model = small_model(attn_implementation=attention, dtype=torch.bfloat16).cuda()
        for kind, score in SCORES.items():
            found[f"{kind}, {attention}"] = largest_error(score(model, probes).per_pair, expected[kind])
    return found


def profiles(model: Any, pairs: int, folder: Path) -> list[str]:
    """Write torch.profiler's table of one pass with edges, without kernels and with them; the files' names."""
    probes, written = random_pairs(model.config.vocab_size, pairs, 200, 16, seed=0), []
    for kernels in kernel_choices():
        score_edges(model, probes, kernels=kernels)
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            score_edges(model, probes, kernels=kernels)
            torch.cuda.synchronize()
        name = f"profile-{kernels}.txt"
        table = profile.key_averages().table(sort_by="cuda_time_total", row_limit=60)
        (folder / name).write_text(table + "\n", encoding="utf-8")
        written.append(name)
    return written


def trial(model: Any, pairs: int) -> dict[str, Any]:
    """What kernels="auto" measures on openers with edges, and would decide."""
    if not installed():
        return {"parts": [], "failure": "triton is not installed"}
    probes = random_pairs(model.config.vocab_size, pairs, 200, 16, seed=0)
    found, limit = try_parts(model, probes, "logit_diff", ScoringSettings(batch_size=pairs)), limit_of(model)
    parts = [each.part for each in found if each.passes(limit)]
    return {"parts": parts, "limit": limit, "trials": [each.to_json() for each in found]}


def circuits(model: Any, pairs: int) -> dict[str, Any]:
    """Circuits from edges on the device and on the CPU: whether they agree, and the seconds before training goes on."""
    probes = random_pairs(model.config.vocab_size, pairs, 200, 16, seed=0)
    edges = score_pairs(model, probes, ScoringSettings(batch_size=pairs), edges_on_device=True)
    assert isinstance(edges, EdgeScores)
    graph = graph_of(edges)

    def statistics() -> EdgeStatistics:
        return edge_statistics(real_edges(edges.per_pair, graph))

    own = circuits_of_statistics(statistics(), graph)
    other = circuits_of_statistics(edge_statistics(real_edges(edges.per_pair.cpu(), graph)), graph)
    return {
        "same_heads": bool((own.active == other.active).all()),
        "stability": float(abs(own.stability - other.stability).max()),
        "importance": float(abs(own.importance_draws - other.importance_draws).max()),
        "seconds": timed(statistics),
    }


def graphs(model: Any, probes: ProbeSet, kernels: str) -> dict[str, Any]:
    """Passes with edges in small batches, with CUDA graphs and without."""
    settings, capture = ScoringSettings(batch_size=8, kernels=kernels), CudaCapture(torch.device("cuda"))
    own = BatchGraphs(capture)

    def score(kept: BatchGraphs | None) -> HeadScores | EdgeScores:
        return score_pairs(model, probes, settings, graphs=kept)

    score(own)  # records them
    return {
        "seconds": {"usual": timed(lambda: score(None), 3), "graphs": timed(lambda: score(own), 3)},
        "difference": difference_of(score(own), score(None)),
        "repetitions": own.repetitions,
        "memory_mb": capture.memory_mb(),
        "failure": own.failure,
    }


def all_graphs(model: Any, pairs: int) -> dict[str, Any]:
    """`graphs` of every kind of pass."""
    of = {label: random_pairs(model.config.vocab_size, pairs, *shape, seed=0) for label, shape in PROBES.items()}
    return {f"{label}, {own}": graphs(model, of[label], own) for label, own in product(of, kernel_choices())}


def budget(model: Any, pairs: int) -> dict[str, Any]:
    """The default budget of this device, corrected by the memory of the largest batch of openers."""
    probes = random_pairs(model.config.vocab_size, pairs, 200, 16, seed=0)
    before = default_budget_gb(model, free_bytes(next(model.parameters()).device))
    metrics = dict.fromkeys(probes.family_names, "logit_diff")
    return measured_budget(model, probes, metrics, ScoringSettings(memory_budget_gb=before)).to_json()


def recipe(steps: int, folder: Path) -> dict[str, Any]:
    """A real training by the SmolLM2 recipe: its wall time, and what its record says of the probes."""
    out = folder / "recipe"
    command = [sys.executable, "-m", "headwatch.training", str(RECIPE), "--max_steps", str(steps)]
    began = time.perf_counter()
    done = subprocess.run([*command, "--output_dir", str(out)], capture_output=True, text=True, check=False)
    found: dict[str, Any] = {"returncode": done.returncode, "seconds": time.perf_counter() - began}
    if done.returncode:
        return found | {"last_lines": done.stderr.strip().splitlines()[-5:]}
    run = RunFolder.open(out)
    found |= {"probes": len(run.steps), "status": run.manifest.get("status")}
    found |= {key: run.manifest.get(key) for key in ("kernels", "memory_budget")}
    return found | {"last_probe": run.scalars()[-1]}


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
        for kind, kernels in product(SCORES, kernel_choices()):
            scores: list[Any] = []
            seconds = timed(lambda s=SCORES[kind], p=probes, out=scores, k=kernels: out.append(s(model, p, kernels=k)))
            settings = ScoringSettings(edges=kind == "edges", batch_size=pairs, kernels=kernels)
            counts = count_pass(shape, probes, settings)
            found[f"{label}, {kind}, {kernels}"] = {
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
    parser.add_argument("--recipe", type=int, metavar="STEPS", help="also train the SmolLM2 recipe for so many steps")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("make gpu needs a CUDA device, and torch finds none; modelled times: python benchmarks/gpu_model.py")
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "versions": versions()}

    @cache
    def large() -> Any:
        loading = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        with torch.device("cuda"):
            if options.model:
                model = AutoModelForCausalLM.from_pretrained(options.model, **loading)
            else:
                model = AutoModelForCausalLM.from_config(SHAPES["qwen2.5-math-1.5b"](), **loading)
        return model.eval().requires_grad_(False)

    parts: dict[str, Callable[[], Any]] = {
        "exactness": lambda: exactness("cuda"),
        "flash": flash,
        "passes": lambda: passes(large(), options.pairs),
        "circuits": lambda: circuits(large(), options.pairs),
        "budget": lambda: budget(large(), options.pairs),
        "graphs": lambda: all_graphs(large(), options.pairs),
        "trial": lambda: trial(large(), options.pairs),
        "profile": lambda: profiles(large(), options.pairs, options.out),
    }
    if options.recipe:
        parts["recipe"] = lambda: recipe(options.recipe, options.out)
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
