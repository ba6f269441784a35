"""What a pass costs beside the arithmetic that it needs: the floor, heads, edges, the naive reference, exact patching.

    python benchmarks/attribution.py --model FOLDER --pairs 8 --prefix 0 --suffix 64                # no shared prefix
    python benchmarks/attribution.py --model FOLDER --pairs 64 --prefix 150 --suffix 12             # paper-like openers
    python benchmarks/attribution.py --model FOLDER --naive --patching                              # the slow ones too

The floor is m x (forward + activation-only backward) + 2 forwards of the same pairs on all their tokens, without prefix
reuse, with logits at the last position alone, on the unmodified model, by autograd, parameters frozen. Everything runs
in alternation in one process, and what is printed are medians of ratios within a round; seconds are beside them for
scale, on the CPU ratios of CPU seconds, which other processes disturb less, and the least seconds of all rounds over
the floor's least, which a machine that is halted now and then disturbs least. Memory is the highest resident set during
one more run above the one before it (CPU, sampled every 2 ms), or what CUDA allocated at most.
"""

import argparse
import ctypes
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headwatch import Anatomy, ProbeSet, score_edges, score_heads
from headwatch.attribution.naive import naive_edges
from headwatch.version import versions


def random_pairs(vocabulary: int, pairs: int, prefix: int, suffix: int, seed: int) -> ProbeSet:
    """Random tokens: `prefix` shared ones, then `suffix` that differ from the first one on."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(vocabulary, (pairs, prefix), generator=generator)
    ends = torch.randint(vocabulary, (2, pairs, suffix), generator=generator)
    ends[1, :, 0] = (ends[0, :, 0] + 1) % vocabulary
    answers = torch.stack([torch.randperm(vocabulary, generator=generator)[:2] for _ in range(pairs)])
    clean, corrupted = (torch.cat([shared, end], 1) for end in ends)
    return ProbeSet.from_token_ids(clean, corrupted, answers=answers)


def floor(model: Any, probes: ProbeSet, m: int, batch: int) -> None:
    """The necessary arithmetic when nothing is shared: both ends forward, m points forward and backward."""
    device = next(model.parameters()).device
    for first in range(0, len(probes), batch):
        rows = slice(first, first + batch)
        clean, corrupted = probes.clean[rows].to(device), probes.corrupted[rows].to(device)
        with torch.no_grad():
            model(input_ids=torch.cat([clean, corrupted]), use_cache=False, logits_to_keep=1)
        points = model.get_input_embeddings()(clean).detach().repeat(m, 1, 1).requires_grad_()
        logits = model(inputs_embeds=points, use_cache=False, logits_to_keep=1).logits[:, -1]
        answers = probes.answers[rows].to(device).repeat(m, 1)
        difference = logits.gather(-1, answers)
        torch.autograd.grad((difference[:, 0] - difference[:, 1]).sum(), points)


def patching(model: Any, probes: ProbeSet, batch: int) -> None:
    """Exact patching: one forward of all pairs for each head, its output taken from the corrupted run."""
    anatomy, device = Anatomy.of(model), next(model.parameters()).device
    for first in range(0, len(probes), batch):
        rows = slice(first, first + batch)
        kept: list[torch.Tensor] = []
        handles = [
            layer.out.register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0]))
            for layer in anatomy.layers
        ]
        with torch.no_grad():
            model(input_ids=probes.corrupted[rows].to(device), use_cache=False, logits_to_keep=1)
            for handle in handles:
                handle.remove()
            for index, layer in enumerate(anatomy.layers):
                for head in range(anatomy.n_heads):
                    columns = slice(head * anatomy.head_dim, (head + 1) * anatomy.head_dim)

                    def patch(module: Any, args: Any, z: torch.Tensor = kept[index], c: slice = columns) -> Any:
                        patched = args[0].clone()
                        patched[..., c] = z[..., c]
                        return (patched,)

                    handle = layer.out.register_forward_pre_hook(patch)
                    model(input_ids=probes.clean[rows].to(device), use_cache=False, logits_to_keep=1)
                    handle.remove()


class Peak:
    """Highest memory inside the block above what was there before, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __enter__(self) -> "Peak":
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        if sys.platform == "linux":  # else what an earlier run freed still counts as resident, and no run adds to it
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.before = self.highest = _resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.highest = max(self.highest, _resident())
            time.sleep(0.002)

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.highest = torch.cuda.max_memory_allocated()
        else:
            self.running = False
            self.thread.join()
        self.mib = (self.highest - self.before) / 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds and CPU seconds of one run."""
    began, busy = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, time.process_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder; with --random, only its config.json is read")
    parser.add_argument("--random", action="store_true", help="random weights: the cost does not depend on them")
    parser.add_argument("--layers", type=int, help="keep the first so many layers (for scaling studies)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prefix", type=int, default=0)
    parser.add_argument("--suffix", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="m, points of the path")
    parser.add_argument(
        "--alphas",
        default="midpoint",
        help='points of heads and edges; "right" is the paper\'s rule, and holds the clean run',
    )
    parser.add_argument("--batch", type=int, default=4, help="pairs at once")
    parser.add_argument("--probe-batch", type=int, help="pairs at once for heads and edges; 0: as their budget allows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--naive", action="store_true", help="also the naive reference (slow)")
    parser.add_argument("--patching", action="store_true", help="also exact patching of one head at a time (slow)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    config = AutoConfig.from_pretrained(options.model)
    if options.layers:
        config.num_hidden_layers = options.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: options.layers]
    loading = {"dtype": dtype, "attn_implementation": options.attention}
    if options.random:
        model = AutoModelForCausalLM.from_config(config, **loading)
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model, config=config, **loading)
    model = model.to(device).eval().requires_grad_(False)
    probes = random_pairs(config.vocab_size, options.pairs, options.prefix, options.suffix, seed=0)
    m, batch = options.steps, options.batch
    own = batch if options.probe_batch is None else options.probe_batch or None
    runs: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(model, probes, m, batch),
        "heads": lambda: score_heads(model, probes, steps=m, alphas=options.alphas, batch_size=own),
        "edges": lambda: score_edges(model, probes, steps=m, alphas=options.alphas, batch_size=own),
    }
    if options.naive:
        runs["naive"] = lambda: naive_edges(model, probes, steps=m)
    if options.patching:
        runs["patching"] = lambda: patching(model, probes, batch)
    few = probes.select(list(range(min(batch, len(probes)))))  # for caches, kernels, the allocator
    floor(model, few, m, batch)
    score_heads(model, few, steps=m)
    score_edges(model, few, steps=m)
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(options.rounds):
        slow = number == 0
        rounds.append(
            {name: measure(run, device) for name, run in runs.items() if slow or name not in ("naive", "patching")}
        )
        line = ", ".join(f"{name} {s / rounds[-1]['floor'][0]:.3f} ({s:.1f} s)" for name, (s, _) in rounds[-1].items())
        print(f"round {number + 1}: {line}", flush=True)

    peaks = {}
    for name, run in runs.items():  # apart: watching the memory takes time from whoever runs most Python
        if name not in ("naive", "patching"):
            with Peak(device) as peak:
                run()
        peaks[name] = peak.mib if name not in ("naive", "patching") else None
    results = {}
    for name in runs:
        found = [entry for entry in rounds if name in entry]
        results[name] = {
            "seconds": statistics.median(entry[name][0] for entry in found),
            "ratio_to_floor": statistics.median(entry[name][0] / entry["floor"][0] for entry in found),
            "cpu_ratio_to_floor": statistics.median(entry[name][1] / entry["floor"][1] for entry in found),
            "least_ratio_to_floor": min(e[name][0] for e in found) / min(e["floor"][0] for e in rounds),
            "peak_mib": peaks[name],
            "rounds": len(found),
        }
    conditions = {
        "model": type(model).__name__,
        "parameters": model.num_parameters(),
        "layers": config.num_hidden_layers,
        "pairs": options.pairs,
        "prefix_tokens": options.prefix,
        "suffix_tokens": options.suffix,
        "m": m,
        "alphas": options.alphas,
        "pairs_at_once": batch,
        "pairs_at_once_in_a_probe": own or "as memory_budget_gb allows",
        "dtype": options.dtype,
        "attention": options.attention,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "versions": versions(),
    }
    print(json.dumps(conditions))
    for name, entry in results.items():
        print(
            f"{name:>9}: {entry['ratio_to_floor']:8.3f} x floor  ({entry['cpu_ratio_to_floor']:.3f} in CPU seconds, "
            f"{entry['least_ratio_to_floor']:.3f} least to least)"
            f"  {entry['seconds']:9.3f} s"
            f"  peak {entry['peak_mib'] or float('nan'):8.0f} MiB  (median of {entry['rounds']})"
        )
    if options.json:
        options.json.write_text(json.dumps({"conditions": conditions, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
