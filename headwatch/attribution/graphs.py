"""CUDA graphs of a run's batches: a batch whose shape was seen before is one launch instead of some two thousand.

A graph repeats kernels at fixed addresses, without Python. It reads the weights where they are (an optimizer changes
them in place) and its own copy of the batch; everything else was decided when it was recorded. So a graph belongs to a
shape of batch and to a state of the model (headwatch/model/graph_state.py), and is recorded again where these change.
The first batch of a pass checks the model and is never a graph.

A shape is scored without a graph when it is first seen, which also prepares libraries and compiles kernels. The second
time the graph is recorded and compared with the scores of the usual way; from the third time on it is used.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headwatch.attribution.batch_pass import BatchScores
from headwatch.attribution.batching import Batch
from headwatch.attribution.tensor_pool import TensorPool
from headwatch.errors import type_and_message

MOST_STATES = 4  # of the model, after which its graphs are given up: they would be recorded at every probe

Run = Callable[[Batch, TensorPool], BatchScores]
"""Scores a batch, with an allocator of its large tensors."""

Capture = Callable[[Callable[[], BatchScores]], tuple[Callable[[], object], BatchScores]]
"""Records what a function does on the device; returns what repeats it, and the result, which each repetition writes."""


@dataclass(frozen=True)
class _Graph:
    """A recorded batch: its copy of the inputs, and the result.

    `run` holds what the graph reads besides the weights, for example the constants of the edges.
    """

    batch: Batch
    repeat: Callable[[], object]
    scores: BatchScores
    run: Run

    def score(self, batch: Batch) -> BatchScores:
        """Scores of another batch of the same shape."""
        for own, new in zip(_inputs(self.batch), _inputs(batch), strict=True):
            own.copy_(new)
        self.repeat()
        return _mapped(self.scores, Tensor.clone)  # the next repetition writes to the same place


class BatchGraphs:
    """The graphs of a run.

    Args:
        capture: records a graph.

    Attributes:
        failure: why no graphs are used any more, one line; None while they are.
        repetitions: how often a graph was used.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self._state: Hashable = None
        self._states = 0
        self.failure: str | None = None
        self.repetitions = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def begin(self, state: Hashable) -> None:
        """Begin a pass over a model in this state; graphs of another state are dropped."""
        if self.failure is not None or state == self._state:
            return
        self._drop()
        self._state, self._states = state, self._states + 1
        if self._states > MOST_STATES:
            self._stop(f"the model's modules or addresses changed {MOST_STATES} times")

    def score(self, settings: Hashable, batch: Batch, run: Run, pool: TensorPool, limit: float) -> BatchScores:
        """Scores of a batch, by a graph where there is one.

        Args:
            settings: whatever else the scores depend on.
            batch: the pairs.
            run: the usual way.
            pool: allocates the large tensors of the usual way.
            limit: largest accepted difference of a graph's scores over the largest score (`tolerance.limit_of`).
        """
        if self.failure is not None:
            return run(batch, pool)
        key = settings, _shape(batch)
        if key in self._graphs:
            self.repetitions += 1
            return self._graphs[key].score(batch)
        found = run(batch, pool)
        if key in self._seen:
            self._record(key, batch, run, found, limit)
        self._seen.add(key)
        return found

    def _record(self, key: Hashable, batch: Batch, run: Run, expected: BatchScores, limit: float) -> None:
        """Record a graph and compare it with the usual way; a failure ends all graphs and nothing else."""
        own = replace(batch, **{name: getattr(batch, name).clone() for name in _TENSORS}, reads=batch.reads.repeat(1))
        try:
            repeat, scores = self._capture(lambda: run(own, TensorPool()))
            graph = _Graph(own, repeat, scores, run)
            error = _difference(graph.score(batch), expected)
        except Exception as caught:
            self._stop(type_and_message(caught))
            return
        if error <= limit:
            self._graphs[key] = graph
        else:
            self._stop(f"its scores differ by {error:.2g} of the largest from those without a graph")

    def _stop(self, reason: str) -> None:
        self.failure = reason
        self._drop()

    def _drop(self) -> None:
        self._graphs.clear()
        self._seen.clear()


_TENSORS = ("clean", "corrupted", "mask", "positions", "read_columns")


def _inputs(batch: Batch) -> list[Tensor]:
    reads = batch.reads
    return [*(getattr(batch, name) for name in _TENSORS), reads.answers, reads.targets, reads.present]


def _shape(batch: Batch) -> Hashable:
    return batch.cut, batch.keep, batch.padded, *(tuple(own.shape) for own in _inputs(batch))


def _results(scores: BatchScores) -> list[Tensor]:
    return [scores.heads, scores.input, *([] if scores.edges is None else [scores.edges])]


def _mapped(scores: BatchScores, function: Callable[[Tensor], Tensor]) -> BatchScores:
    return BatchScores(
        heads=function(scores.heads),
        input=function(scores.input),
        edges=None if scores.edges is None else function(scores.edges),
        clean_logits=function(scores.clean_logits),
        corrupted_logits=function(scores.corrupted_logits),
    )


@torch.no_grad()
def _difference(found: BatchScores, expected: BatchScores) -> float:
    """Largest difference over the largest score, of heads, input and edges; NaN if any is NaN."""
    errors = []
    for own, usual in zip(_results(found), _results(expected), strict=True):
        errors.append((own - usual).abs().max() / usual.abs().max().clamp(min=torch.finfo(usual.dtype).tiny))
    return float(torch.stack(errors).max())


class CudaCapture:
    """Records on a CUDA device. All graphs share one pool of memory, since they never run at the same time.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], BatchScores]) -> tuple[Callable[[], object], BatchScores]:
        """See `Capture`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may call CUDA meanwhile, for example NCCL's watchdog.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            scores = work()
        return graph.replay, scores

    def memory_mb(self) -> float:
        """Memory that the graphs keep, in MiB."""
        segments = torch.cuda.memory_snapshot()
        own = (each["total_size"] for each in segments if tuple(each["segment_pool_id"]) == tuple(self._pool))
        return sum(own) / 2**20
