"""The CUDA graphs of a run's probes, where `scoring.cuda_graphs` asks for them."""

from typing import Any

from torch import nn

from headwatch.attribution.graphs import BatchGraphs, CudaCapture
from headwatch.errors import type_and_message
from headwatch.model.graph_state import no_graphs_because
from headwatch.monitor.console import say


class RunGraphs:
    """Graphs that are kept from probe to probe, on each process for itself.

    Args:
        wanted: `ScoringSettings.cuda_graphs`.
        speaks: whether this process prints lines.
    """

    def __init__(self, wanted: bool, speaks: bool) -> None:
        self._wanted, self._speaks = wanted, speaks
        self._graphs: BatchGraphs | None = None
        self._capture: CudaCapture | None = None
        self._off: str | None = None
        self._written: dict[str, Any] | None = None

    def of(self, model: nn.Module) -> BatchGraphs | None:
        """The graphs for a pass over this model; None, with one line once, where there can be none."""
        if not self._wanted or self._off is not None:
            return None
        reason = no_graphs_because(model)
        if reason is not None:
            self._give_up(reason)
        elif self._graphs is None:
            self._capture = CudaCapture(next(model.parameters()).device)
            self._graphs = BatchGraphs(self._capture)
        return self._graphs

    def after_pass(self, error: BaseException | None) -> None:
        """Give the graphs up, with one line, where one failed, or where a pass that may have used them did."""
        if self._graphs is None:
            return
        reason = self._graphs.failure
        if error is not None and len(self._graphs):
            reason = f"a pass failed ({type_and_message(error)})"
        if reason is not None:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        self._off, self._graphs, self._capture = reason, None, None
        if self._speaks:
            say(f"no CUDA graphs: {reason}")

    def to_record(self) -> dict[str, Any] | None:
        """The manifest's "cuda_graphs", after each change; else None."""
        if not self._wanted:
            return None
        number = 0 if self._graphs is None else len(self._graphs)
        kept = self._capture.memory_mb() if number and self._capture is not None else None
        entry = {"graphs": number, "memory_mb": kept, "off": self._off}
        changed, self._written = entry != self._written, entry
        return entry if changed else None
