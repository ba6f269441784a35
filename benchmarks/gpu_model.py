"""Modelled time of a pass on GPUs, from counts on meta tensors: nothing here is measured on a GPU.

    python benchmarks/gpu_model.py                                   # Qwen2.5-Math-1.5B, 64 openers, edges
    python benchmarks/gpu_model.py --shape llama-3.2-1b --prefix 0 --suffix 32 --kind heads
    python benchmarks/gpu_model.py --model FOLDER --pairs 128        # a model folder's config.json
    python benchmarks/gpu_model.py --where                           # the lines that wait for the device, and upload
    python benchmarks/gpu_model.py --host                            # measured: what the host does per batch

Two tables: plain PyTorch, and with the fused kernels of headwatch/kernels (`--kernels torch` or `triton`: one).

The pass runs on meta tensors at the model's true shapes (pass_counter.py). Modelled time: for every kernel the largest
of its bytes over the memory bandwidth, its operations over the arithmetic rate, and the cost of a launch; summed over
the kernels of all batches. A batch is counted once per size and kind (the first batch also checks the model).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from attribution import random_pairs
from pass_counter import Counts, counted
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from headwatch import Anatomy, ProbeSet
from headwatch.attribution.batch_size import batch_sizes
from headwatch.attribution.metrics import resolve_metric
from headwatch.attribution.path import Path as PathPoints
from headwatch.attribution.scoring import score_pairs
from headwatch.attribution.settings import ScoringSettings

LAUNCH = 6e-6  # seconds from one kernel to the next when the host cannot run ahead


@dataclass(frozen=True)
class Device:
    """Rates that a well-written kernel reaches, below the data sheet's peak.

    Attributes:
        bf16, fp32: operations per second of matrix products; fp32 without TF32.
        bandwidth: bytes per second.
        memory: bytes.
    """

    bf16: float
    fp32: float
    bandwidth: float
    memory: float


DEVICES = {
    "H100 80 GB": Device(700e12, 51e12, 2.6e12, 80e9),
    "H200 141 GB": Device(700e12, 51e12, 3.7e12, 141e9),
    "A100 80 GB": Device(220e12, 15e12, 1.6e12, 80e9),
    "RTX 4090 24 GB": Device(130e12, 60e12, 0.8e12, 24e9),
}

SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen2.5-math-1.5b": lambda: Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
    "llama-3.2-1b": lambda: LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
}


def meta_model(config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model of this shape without memory for its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    return model.eval()


def count_pass(model: Any, probes: ProbeSet, settings: ScoringSettings, **options: Any) -> Counts:
    """The counts of one pass; `options` of `score_pairs`."""
    return counted(model, lambda: score_pairs(model, probes, settings, **options))


def modelled_seconds(counts: Counts, device: Device, launch: float = LAUNCH) -> float:
    """Sum over the kernels of the longest of memory traffic, arithmetic and launch."""
    rates = {torch.bfloat16: device.bf16, torch.float16: device.bf16}
    return sum(
        max(size / device.bandwidth, operations / rates.get(dtype, device.fp32), launch)
        for size, operations, dtype in counts.kernels
    )


def launch_bound(counts: Counts, device: Device, launch: float = LAUNCH) -> int:
    """Number of kernels that a launch takes longer than."""
    rates = {torch.bfloat16: device.bf16, torch.float16: device.bf16}
    return sum(
        max(size / device.bandwidth, operations / rates.get(dtype, device.fp32)) < launch
        for size, operations, dtype in counts.kernels
    )


def host_seconds(config: PretrainedConfig, settings: ScoringSettings, rounds: int = 5) -> tuple[float, float]:
    """CPU seconds that the host takes to launch the first batch of a pass and a later one; measured.

    The pass runs on the CPU, over two pairs and a model of as many layers and heads that are 4 wide: the arithmetic
    takes little time, and what remains is Python and torch. Without the kernels of headwatch/kernels.
    """
    narrow = config.__class__(
        hidden_size=4 * config.num_attention_heads,
        intermediate_size=64,
        head_dim=4,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        vocab_size=64,
    )
    model, probes = AutoModelForCausalLM.from_config(narrow).eval(), random_pairs(64, 2, 20, 4, seed=0)
    seconds = {}
    for size in (2, 1):  # one batch, and two
        own = replace(settings, batch_size=size, kernels="torch")
        score_pairs(model, probes, own)
        began = time.process_time()
        for _ in range(rounds):
            score_pairs(model, probes, own)
        seconds[size] = (time.process_time() - began) / rounds
    return seconds[2], seconds[1] - seconds[2]


def print_where(counts: Counts) -> None:
    """The lines that wait for the device and upload, and the operations."""
    for title, found in (("synchronisations", counts.synchronisations), ("uploads", counts.uploads)):
        print(f"\n{title}:")
        for line, number in found.most_common():
            print(f"  {number:4} {line}")
    print("\noperations:", counts.by_name.most_common(30))
    by_size = sorted(((n, round(b / 1e9, 2)) for n, b in counts.bytes_by_name.items()), key=lambda x: -x[1])
    print("\nbytes (GB):", by_size[:20])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-math-1.5b")
    parser.add_argument("--model", help="a model folder; only its config.json is read")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=200)
    parser.add_argument("--suffix", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--alphas", default="midpoint")
    parser.add_argument("--metric", default="logit_diff")
    parser.add_argument("--kind", choices=("heads", "edges"), default="edges")
    parser.add_argument("--batch-size", type=int, help="pairs per batch; by default one batch of all pairs")
    parser.add_argument("--budget-gb", type=float, help="pairs per batch from this memory budget instead")
    parser.add_argument("--kernels", choices=("torch", "triton", "both"), default="both")
    parser.add_argument("--launch", type=float, default=1e6 * LAUNCH, help="microseconds from one kernel to the next")
    parser.add_argument("--host", action="store_true", help="measure what the host does per batch, and nothing else")
    parser.add_argument("--where", action="store_true", help="list synchronisations, copies and kernels")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()

    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(options.model) if options.model else SHAPES[options.shape]()
    model = meta_model(config, getattr(torch, options.dtype))
    probes = random_pairs(config.vocab_size, options.pairs, options.prefix, options.suffix, seed=0)
    settings = ScoringSettings(
        metric=options.metric,
        steps=options.steps,
        alphas=options.alphas,
        edges=options.kind == "edges",
        batch_size=options.batch_size or (None if options.budget_gb else options.pairs),
        memory_budget_gb=options.budget_gb,
    )
    if options.host:
        first, later = host_seconds(config, settings)
        print(f"CPU seconds of the host: first batch {first:.3f}, later batches {later:.3f} (measured on this machine)")
        return
    path = PathPoints.of(settings.alphas, settings.steps, *resolve_metric(settings.metric))
    size, _ = batch_sizes(Anatomy.of(model), probes, len(path.points), settings.batch_size, settings.memory_budget_gb)
    n_batches = -(-options.pairs // size)
    reports = {}
    weights = sum(p.nbytes for p in model.parameters())
    shared = {
        "shape": options.model or options.shape,
        "kind": options.kind,
        "pairs": options.pairs,
        "prefix": options.prefix,
        "suffix": options.suffix,
        "points": len(path.points),
        "pairs_per_batch": size,
        "batches": n_batches,
    }
    for name, value in shared.items():
        print(f"{name.replace('_', ' '):>22}: {value}")
    for kernels in ("torch", "triton") if options.kernels == "both" else (options.kernels,):
        counts = count_pass(model, probes, replace(settings, kernels=kernels))
        report = {
            "kernels_per_batch": len(counts.kernels) / n_batches,
            "synchronisations": sum(counts.synchronisations.values()),
            "asynchronous_copies": sum(counts.uploads.values()) + len(counts.downloads),
            "gigabytes_moved": counts.bytes / 1e9,
            "teraflop": counts.operations / 1e12,
            "peak_gib": counts.peak_bytes / 2**30,
            "modelled_seconds": {
                name: modelled_seconds(counts, device, options.launch / 1e6) for name, device in DEVICES.items()
            },
        }
        reports[kernels] = report
        print(f"\nkernels={kernels!r}")
        for name, value in report.items():
            if name != "modelled_seconds":
                print(f"{name.replace('_', ' '):>22}: {round(value, 2)}")
        print("\n| device | modelled time | kernels shorter than a launch | fits |\n| --- | --- | --- | --- |")
        for name, device in DEVICES.items():
            fits = "yes" if counts.peak_bytes + weights < device.memory else "no"
            seconds = report["modelled_seconds"][name]
            short = launch_bound(counts, device, options.launch / 1e6)
            print(f"| {name} | {seconds:.3f} s | {short} of {len(counts.kernels)} | {fits} |")
        if options.where:
            print_where(counts)
    if options.json:
        options.json.write_text(json.dumps(shared | {"kernels": reports}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
