"""How the cost of a probe grows with tokens, pairs, layers and heads, and what that says about larger models.

    python benchmarks/scaling.py                          # measure on random Llama models
    python benchmarks/scaling.py --predict-only           # the arithmetic alone, for models that do not fit here

Cost is given as a ratio to the floor of benchmarks/attribution.py (m x (forward + backward) + 2 forwards of the same
pairs, nothing reused), in alternating runs of one process; beside it stands what the arithmetic alone predicts, see
`predicted`.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from attribution import floor, measure, random_pairs
from transformers import LlamaConfig, LlamaForCausalLM

from headwatch import score_edges, score_heads
from headwatch.version import versions

VOCABULARY = 2048  # the output matrix is read at one position: it should not decide


@dataclass(frozen=True)
class Shape:
    """A Llama-like model and a probe: L, H, K, D, width of the MLP, shared and differing tokens, pairs."""

    layers: int = 8
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    hidden: int = 1536
    prefix: int = 0
    suffix: int = 32
    pairs: int = 8

    @property
    def width(self) -> int:
        """M."""
        return self.heads * self.head_dim

    @property
    def weights(self) -> int:
        """Weights that every token passes: all matrices of the layers."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def sources(self) -> int:
        """S."""
        return 1 + self.layers * (self.heads + 1)

    @property
    def targets(self) -> int:
        """R."""
        return 1 + self.layers * (3 * self.heads + 1)

    @property
    def real_edges(self) -> int:
        """Edges that exist."""
        before = [1 + layer * (self.heads + 1) for layer in range(self.layers)]
        return sum(3 * self.heads * s + s + self.heads for s in before) + self.sources


def predicted(shape: Shape, m: int) -> tuple[float, float]:
    """Heads and edges over the floor, by multiply-adds alone (attention's T^2 and everything elementwise left out).

    A token and pair need (2 m + 2) W for the runs (W weights), and for the edges E M for the products of all E real
    edges, 4 H D M L to bring gradients and sources to residual space, and 3 m H M L for the norms' own Jacobians.
    """
    passes = 2 * m + 2  # forwards, and backwards for activations, that cost as much
    floor_macs = passes * shape.weights * (shape.prefix + shape.suffix)
    heads = shape.weights * (shape.prefix + passes * shape.suffix)
    square = shape.heads * shape.head_dim * shape.width * shape.layers  # o_proj's worth in all layers
    product = shape.real_edges * shape.width
    expand = 3 * square + square  # gradients of q, k, v to residual space, and the sources
    fold = m * shape.width * 3 * shape.heads * shape.layers
    return heads / floor_macs, (heads + (product + expand + fold) * shape.suffix) / floor_macs


def build(shape: Shape) -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def measured(shape: Shape, m: int, rounds: int) -> dict[str, float]:
    model = build(shape)
    probes = random_pairs(VOCABULARY, shape.pairs, shape.prefix, shape.suffix, seed=0)
    at_once = max(1, min(shape.pairs, 256 // (shape.prefix + shape.suffix)))
    runs = {
        "floor": lambda: floor(model, probes, m, at_once),
        "heads": lambda: score_heads(model, probes, steps=m, batch_size=max(1, min(shape.pairs, 256 // shape.suffix))),
        "edges": lambda: score_edges(model, probes, steps=m, batch_size=max(1, min(shape.pairs, 256 // shape.suffix))),
    }
    for run in runs.values():
        run()
    cpu = torch.device("cpu")
    found = [{name: measure(run, cpu)[0] for name, run in runs.items()} for _ in range(rounds)]
    return {
        "floor_seconds": statistics.median(f["floor"] for f in found),
        "heads_ratio": statistics.median(f["heads"] / f["floor"] for f in found),
        "edges_ratio": statistics.median(f["edges"] / f["floor"] for f in found),
    }


STUDY: dict[str, list[Shape]] = {
    "tokens": [Shape(suffix=t) for t in (8, 32, 128)],
    "shared prefix": [Shape(prefix=p, suffix=12) for p in (0, 50, 150, 300)],
    "pairs": [Shape(pairs=n) for n in (2, 8, 32)],
    "layers": [Shape(layers=n) for n in (2, 8, 16, 32)],
    "heads": [Shape(layers=2, heads=h, kv_heads=h, hidden=h * 64 * 8 // 3, suffix=16, pairs=8) for h in (4, 8, 16, 32)],
}
# From the models' published configurations; a probe of 64 pairs, 150 shared tokens and 12 after them.
LARGE: dict[str, Shape] = {
    "SmolLM2-135M": Shape(30, 9, 3, 64, 1536, 150, 12, 64),
    "Qwen2.5-Math-1.5B": Shape(28, 12, 2, 128, 8960, 150, 12, 64),
    "Qwen2.5-7B": Shape(28, 28, 4, 128, 18944, 150, 12, 64),
    "Llama-2-7B": Shape(32, 32, 32, 128, 11008, 150, 12, 64),
    "Qwen2.5-32B": Shape(64, 40, 8, 128, 27648, 150, 12, 64),
    "Llama-3-70B": Shape(80, 64, 8, 128, 28672, 150, 12, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="m, points of the path")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(STUDY), help="one of the studies")
    parser.add_argument("--predict-only", action="store_true")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{torch.get_num_threads()} threads, float32, m={options.steps}; {versions()}")
    for study, shapes in {} if options.predict_only else STUDY.items():
        if options.only not in (None, study):
            continue
        print(f"{study}:   heads, edges over the floor: measured (predicted)", flush=True)
        for shape in shapes:
            heads, edges = predicted(shape, options.steps)
            found = measured(shape, options.steps, options.rounds)
            rows.append({"study": study, **vars(shape), **found, "predicted_heads": heads, "predicted_edges": edges})
            print(
                f"  L={shape.layers:<3} H={shape.heads:<3} prefix={shape.prefix:<4} suffix={shape.suffix:<4} "
                f"pairs={shape.pairs:<3} floor {found['floor_seconds']:7.2f} s   "
                f"heads {found['heads_ratio']:.3f} ({heads:.3f})   edges {found['edges_ratio']:.3f} ({edges:.3f})",
                flush=True,
            )
    print("by arithmetic alone: (heads, edges over the floor with nothing shared), (the same behind the prefix),")
    print("memory of the sources a token, of one pair's edge scores, of one pair's head scores (float32)")
    for name, shape in LARGE.items():
        bare = predicted(Shape(**{**vars(shape), "prefix": 0}), options.steps)
        shared = predicted(shape, options.steps)
        memory = [4 * shape.sources * shape.width, 4 * shape.sources * shape.targets, 4 * shape.layers * shape.heads]
        rows.append({"study": "large", "model": name, "bare": bare, "shared": shared, "bytes": memory})
        print(
            f"  {name:<18} S={shape.sources:<5} R={shape.targets:<6} edges={shape.real_edges:<10}"
            f" bare {bare[0]:.2f} {bare[1]:.2f}  prefix {shared[0]:.3f} {shared[1]:.3f}"
            f"  {memory[0] / 2**20:8.2f} MiB {memory[1] / 2**20:8.1f} MiB {memory[2] / 2**10:6.1f} KiB"
        )
    if options.json:
        options.json.write_text(json.dumps({"steps": options.steps, "versions": versions(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
