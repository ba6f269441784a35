"""What a probe costs after its pass: CPU seconds on the training's thread and in the worker, disk, and resuming.

    python benchmarks/after_the_pass.py                                  # 1,000 probes, heads only, then 12 with edges
    python benchmarks/after_the_pass.py --probes 300 --edge-probes 0
    python benchmarks/after_the_pass.py --probes 0 --edge-probes 0       # only the parts of the circuits of one family

Synthetic scores at Qwen2.5-Math-1.5B's shape (28 x 12 heads, 183,555 edges), two families of 64 pairs; at every tenth
probe a head changes its share. The recorder runs as in a training, with a reward in the trainer's log (10 rows per
probe) and one sink that shows no figures. No heads are patched. Each job of the worker has ended before the next probe,
and the time to make the synthetic scores is not counted.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from headwatch import ProbeSet
from headwatch.attribution import Checks, EdgeScores, HeadScores
from headwatch.attribution.scores import Readings
from headwatch.circuits.selection import graph_of
from headwatch.circuits.stability import circuits_of_statistics, edge_statistics, real_edges
from headwatch.model.anatomy import Anatomy
from headwatch.monitor.probe_timer import ProbeTimer
from headwatch.monitor.recorder import Recorder
from headwatch.record.run_folder import RunFolder, describe_probes
from headwatch.sinks import Sink
from headwatch.stats import EvidenceSettings

LAYERS, HEADS, PAIRS, FAMILIES = 28, 12, 64, ("one", "two")
LOGS_PER_PROBE = 10


class Synthetic:
    """Scores of every probe: shares that fall off steeply over heads, noise of pairs, and heads that come and go."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        n = len(FAMILIES) * PAIRS
        self.share = np.sort(np.exp(-0.15 * np.arange(LAYERS * HEADS)))[self.rng.permutation(LAYERS * HEADS)]
        self.share = (self.share / self.share.sum()).reshape(LAYERS, HEADS)
        self.gap = -5.0 * np.exp(0.1 * self.rng.standard_normal(n))
        self.families = tuple(name for name in FAMILIES for _ in range(PAIRS))
        parts: Any = (SimpleNamespace(parallel=False, whole=False),) * LAYERS
        self.anatomy = Anatomy(None, parts, (), None, None, LAYERS, HEADS, 2, 128, 1536)  # type: ignore[arg-type]
        self.is_real = self.anatomy.is_real()
        shape = self.is_real.shape
        self.edges = torch.from_numpy(np.exp(1.5 * self.rng.standard_normal(shape)) * 1e-3).float() * self.is_real

    def heads(self, probe: int) -> HeadScores:
        """Head scores of the next probe."""
        if probe % 10 == 0:
            layer, head = self.rng.integers(LAYERS), self.rng.integers(HEADS)
            self.share[layer, head] = 0.0 if self.share[layer, head] > 0.01 else 0.05
        noise = 1e-3 * self.rng.standard_normal((len(self.gap), LAYERS, HEADS))
        per_pair = torch.from_numpy(self.gap[:, None, None] * (self.share + noise)).float()
        gap = torch.from_numpy(self.gap).float()
        readings = Readings(torch.zeros_like(gap), gap, torch.ones(len(gap), dtype=torch.bool))
        checks = Checks(0.01, None, 0.001)
        return HeadScores(per_pair, gap, readings, self.families, "logit_diff", 5, "midpoint", checks)

    def with_edges(self, heads: HeadScores) -> EdgeScores:
        """Edge scores that do not belong to these head scores."""
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**31)))
        per_pair = self.edges * torch.randn(len(self.gap), *self.edges.shape, generator=generator)
        return EdgeScores(per_pair, self.anatomy.sources, self.anatomy.targets, self.is_real, heads)


def start(folder: Path, edges: bool) -> Recorder:
    n = len(FAMILIES) * PAIRS
    tokens = torch.stack([torch.arange(n), torch.arange(n)], 1)
    probes = ProbeSet.from_token_ids(tokens, tokens + 1, answers=torch.stack([tokens[:, 0], tokens[:, 0] + 1], 1))
    object.__setattr__(probes, "families", Synthetic().families)
    manifest = {"model": {"n_layers": LAYERS, "n_heads": HEADS}, "probes": describe_probes(probes), "status": "running"}
    run = RunFolder.create(folder, manifest)
    rule = (0.027, None, 0) if edges else None
    return Recorder(run, probes, (LAYERS, HEADS), EvidenceSettings(), rule)


def time_jobs(recorder: Recorder, spent: list[float]) -> None:
    """Append the CPU seconds of every job of the worker to `spent`."""
    write = recorder._writer.write

    def timed(*args: Any) -> None:
        began = time.thread_time()
        write(*args)
        spent.append(time.thread_time() - began)

    recorder._writer.write = timed  # type: ignore[method-assign]


def measure(probes: int, edges: bool) -> dict[str, Any]:
    """CPU seconds of every probe by thread, bytes on disk per probe, and seconds and file reads of a restore."""
    with tempfile.TemporaryDirectory() as folder:
        recorder, synthetic, sinks = start(Path(folder), edges), Synthetic(), [Sink()]
        training: list[float] = []
        worker: list[float] = []
        time_jobs(recorder, worker)
        for probe in range(probes):
            step = probe * LOGS_PER_PROBE
            heads = synthetic.heads(probe)
            scores = synthetic.with_edges(heads) if edges else heads
            began = time.thread_time()
            recorder.wait()
            result = recorder.update(step, scores, torch.zeros(len(synthetic.gap)))
            recorder.conclude(result, ProbeTimer(), sinks, final=False)
            training.append(time.thread_time() - began)
            del scores, result  # as in a training, where the worker alone keeps the edges
            recorder.wait()
            for log in range(LOGS_PER_PROBE):
                recorder.log(step + log + 1, {"reward": float(synthetic.rng.random()), "loss": 0.1})
        files = sorted((recorder.run.path / "scores").glob("*.safetensors"))
        reads: list[int] = []
        original = RunFolder.read_scores

        def counted(self: RunFolder, step: int) -> Any:
            reads.append(step)
            return original(self, step)

        RunFolder.read_scores = counted  # type: ignore[method-assign]
        began = time.thread_time()
        again = start(Path(folder) / "again", edges)
        again.run = recorder.run
        again.restore()
        restored = time.thread_time() - began
        RunFolder.read_scores = original  # type: ignore[method-assign]
        assert all((again.histories[f].state == recorder.histories[f].state).all() for f in FAMILIES)
        return {
            "probes": probes,
            "edges": edges,
            "events": sum(len(h.events) for h in recorder.histories.values()),
            "training_seconds": {f"{a + 1}-{b}": float(np.mean(training[a:b])) for a, b in windows(probes)},
            "worker_seconds": {f"{a + 1}-{b}": float(np.mean(worker[a:b])) for a, b in windows(probes)},
            "megabytes_per_probe": float(np.mean([file.stat().st_size for file in files])) / 1e6,
            "restore_seconds": restored,
            "reads_per_probe": len(reads) / probes,
        }


def circuit_parts(rounds: int = 5) -> dict[str, float]:
    """Least CPU seconds of the circuits of one family: its real edges, their statistics, and the pruning of these.

    On CUDA the first two are computed on the device, before the training continues.
    """
    synthetic, found = Synthetic(), []
    edges = synthetic.with_edges(synthetic.heads(1)).select(FAMILIES[0])
    graph = graph_of(edges)
    for _ in range(rounds):
        times = [time.thread_time()]
        strength = real_edges(edges.per_pair, graph)
        times.append(time.thread_time())
        statistics = edge_statistics(strength, 0.027)
        times.append(time.thread_time())
        circuits_of_statistics(statistics, graph, 0.027)
        times.append(time.thread_time())
        found.append(np.diff(times))
    return dict(zip(("real edges", "statistics", "pruning"), np.min(found, axis=0).tolist(), strict=True))


def windows(probes: int) -> list[tuple[int, int]]:
    """Ranges of probes whose mean is reported: the first ten after the first two, and ten at each of these."""
    ends = [n for n in (100, 300, 550, 1000) if n <= probes]
    return [(2, min(12, probes)), *((end - 10, end) for end in ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=1000, help="probes that score heads only")
    parser.add_argument("--edge-probes", type=int, default=12, help="probes that score edges")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = [measure(n, edges) for n, edges in ((options.probes, False), (options.edge_probes, True)) if n]
    for report in found:
        print(f"{'edges' if report['edges'] else 'heads'}, {report['probes']} probes, {report['events']} events")
        for window, seconds in report["training_seconds"].items():
            worker = report["worker_seconds"][window]
            print(f"  probes {window:>9}: {seconds:.4f} CPU s on the training's thread, {worker:.4f} in the worker")
        print(f"  on disk: {report['megabytes_per_probe']:.2f} MB per probe")
        print(f"  restored in {report['restore_seconds']:.2f} CPU s, {report['reads_per_probe']:.0f} reads per file")
    parts = circuit_parts()
    print("circuits of one family:", ", ".join(f"{name} {seconds:.3f} CPU s" for name, seconds in parts.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
