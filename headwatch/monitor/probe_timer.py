"""How long probes take in relation to the training between them, and whether the next one may be taken."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]


@dataclass
class ProbeTimer:
    """Seconds of the last probe and of the training since it, on one process.

    Attributes:
        max_overhead: the largest accepted ratio of the two; None accepts every one.
        clock: seconds.
        probe_seconds: duration of the last probe.
        training_seconds: duration of the training between the last probe and the one before; None for the base probe.
    """

    max_overhead: float | None = None
    clock: Clock = time.perf_counter
    probe_seconds: float = 0.0
    training_seconds: float | None = None
    _began: float = field(default=0.0, init=False)
    _ended: float | None = field(default=None, init=False)

    def start_training(self) -> None:
        """A resumed training begins: it has its last probe already."""
        self._ended = self.clock()

    def start_probe(self) -> None:
        """A probe begins."""
        self._began = self.clock()
        self.training_seconds = None if self._ended is None else self._began - self._ended

    def end_probe(self) -> None:
        """The probe has ended."""
        self._ended = self.clock()
        self.probe_seconds = self._ended - self._began

    def seconds(self) -> float:
        """Seconds of the probe so far."""
        return self.clock() - self._began

    def overhead(self) -> float | None:
        """Seconds of the probe so far over the training's since the last one; None for the base probe."""
        if not self.training_seconds:
            return None
        return self.seconds() / self.training_seconds

    def is_due(self) -> bool:
        """Whether a probe as long as the last one stays within `max_overhead` of the training since that one."""
        if self.max_overhead is None or self._ended is None:
            return True
        return self.probe_seconds <= self.max_overhead * (self.clock() - self._ended)

    def describe(self, steps: int) -> str:
        """Why no probe is due, and about when one will be; `steps` since the last probe."""
        assert self._ended is not None
        assert self.max_overhead is not None
        trained = self.clock() - self._ended
        until = max(1, round(steps * (self.probe_seconds / self.max_overhead - trained) / max(trained, 1e-9)))
        return (
            f"the last probe took {self.probe_seconds:.1f} s and the {steps} steps since {trained:.1f} s, so the next "
            f"one waits for about {until:,} more steps (max_overhead={self.max_overhead:g})"
        )
