"""Is a pass slower than in an earlier version? Two versions in alternation, on the same pairs.

    git worktree add ../before e360506
    python benchmarks/before_and_after.py --before ../before --model FOLDER --pairs 4 --suffix 64
    python benchmarks/before_and_after.py --before ../before --model FOLDER --pairs 16 --prefix 150 --suffix 12

Each version runs in a process of its own, which loads the model once and then waits; the two take turns, so both see
the same load. Printed: the ratio of CPU seconds, after over before, in every round, its median, and the ratio of the
least CPU seconds of all rounds, for heads and for edges; and the largest difference of the scores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def serve(options: argparse.Namespace) -> None:
    """Load the model, then run one pass for every line of the standard input: "heads" or "edges"."""
    import torch
    from attribution import random_pairs
    from transformers import AutoModelForCausalLM

    import headwatch
    from headwatch import score_edges, score_heads

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().requires_grad_(False)
    probes = random_pairs(model.config.vocab_size, options.pairs, options.prefix, options.suffix, seed=0)
    score = {"heads": score_heads, "edges": score_edges}
    print(headwatch.__file__, flush=True)
    for line in sys.stdin:
        busy = time.process_time()
        scores: Any = score[line.strip()](model, probes, batch_size=options.batch)
        seconds = time.process_time() - busy
        print(json.dumps({"seconds": seconds, "heads": getattr(scores, "heads", scores).mean().tolist()}), flush=True)


class Version:
    """A process that scores with one version of headwatch."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(folder.resolve())},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        found = Path(self._line("ready").strip()).resolve()
        if not found.is_relative_to(folder.resolve()):
            raise SystemExit(f"--before: {folder} was to be measured, but Python imports {found}")

    def _line(self, what: str) -> str:
        line = self._from.readline()
        if not line:
            raise SystemExit(f"a version ended before it was {what}: see its message")
        return line

    def run(self, kind: str) -> dict[str, Any]:
        """CPU seconds and mean head scores of one pass."""
        print(kind, file=self._to, flush=True)
        found: dict[str, Any] = json.loads(self._line("done"))
        return found

    def close(self) -> None:
        """End the process."""
        self._to.close()
        self._process.wait()


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    """Largest difference over the largest value."""
    pairs = [(a, b) for row, second in zip(one, other, strict=True) for a, b in zip(row, second, strict=True)]
    return max(abs(a - b) for a, b in pairs) / max(abs(a) for a, _ in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of the earlier version")
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--prefix", type=int, default=0)
    parser.add_argument("--suffix", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4, help="pairs per batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    if options.before is None:
        parser.error("--before is missing: the folder of the earlier version")
    names = ("model", "pairs", "prefix", "suffix", "batch")
    arguments = [text for name in names for text in (f"--{name}", str(getattr(options, name)))]
    versions = [Version(folder, arguments) for folder in (options.before, Path(__file__).parents[1])]
    kinds = ("heads", "edges")
    for kind in kinds:  # for caches and the allocator
        first = [version.run(kind)["heads"] for version in versions]
        print(f"{kind}: largest difference of the mean head scores {difference(*first):.1e}", flush=True)
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(options.rounds):
        order = versions if number % 2 == 0 else versions[::-1]
        for kind in kinds:
            found = {id(version): version.run(kind)["seconds"] for version in order}
            before, after = (found[id(version)] for version in versions)
            seconds[kind].append((before, after))
            print(f"round {number + 1}, {kind}: {before:.2f} -> {after:.2f} s, {after / before:.3f}", flush=True)
    for kind, rounds in seconds.items():
        median = statistics.median(after / before for before, after in rounds)
        least = min(after for _, after in rounds) / min(before for before, _ in rounds)
        print(f"{kind}: after over before, CPU seconds: median {median:.3f}, least to least {least:.3f}")
    for version in versions:
        version.close()


if __name__ == "__main__":
    main()
