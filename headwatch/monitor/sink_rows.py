"""Sends probes to the sinks: scalars, texts, notices, and figures that a sink draws in its own thread."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headwatch.lives.history import HeadHistory
from headwatch.monitor.alerts import WARNING, Alert
from headwatch.monitor.probe_result import ProbeResult
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, plotly, sentences
from headwatch.sinks import Notice, Sink

Correct = Mapping[str, Sequence[np.ndarray[Any, Any]]]
"""Family -> which pairs were answered correctly, for each probe."""


class SinkRows:
    """The rows of one run.

    Args:
        run: the run folder, whose manifest gets the W&B run.
        or_warn: or_warn(action, what) calls `action` and warns once where it raises.
    """

    def __init__(self, run: RunFolder, or_warn: Callable[[Callable[[], Any], str], Any]) -> None:
        self._run, self._or_warn = run, or_warn
        self._noticed: set[tuple[str, str]] = set()  # kind and family of the alerts that the sinks were sent
        self._linked = False  # whether the manifest names the W&B run

    def send(
        self,
        result: ProbeResult,
        sinks: Sequence[Sink],
        histories: Mapping[str, HeadHistory],
        correct: Correct,
        training: Sequence[Mapping[str, Any]],
        final: bool,
    ) -> None:
        """Send one probe. The record is complete by now, so a failure here only costs a view.

        Args:
            result: the probe.
            sinks: receive it.
            histories: family -> history by the evidence rule, up to this probe.
            correct: which pairs were answered correctly.
            training: rows of the trainer's log up to now; not changed later.
            final: whether it is the last probe of the run.
        """
        if not sinks:
            return
        texts = {"alerts_text": result.alerts_text}
        # A sink computes and draws what it shows of this in its own thread while training continues.
        frozen = {family: history.snapshot() for family, history in histories.items()}

        def draw() -> dict[str, Any]:
            return _drawn({f: figure_data.all_figures(h, training) for f, h in frozen.items()})

        def summary() -> dict[str, str]:
            answers = {family: own[: len(frozen[family].steps)] for family, own in correct.items()}
            return summary_lines(frozen, answers)

        more: dict[str, Any] = {"texts": texts, "final": final, "notices": self._notices(result.alerts)}
        more["summary"] = summary
        for sink in sinks:
            self._or_warn(
                lambda s=sink: s.log(result.step, result.scalars, draw, **more),  # type: ignore[misc]
                f"{type(sink).__name__}",
            )
            if not self._linked and (info := sink.run_info()):
                self._run.update_manifest(wandb=info)
                self._linked = True

    def _notices(self, raised: list[Alert]) -> list[Notice]:
        """The alerts of a kind that was not raised on this family before."""
        new = [alert for alert in raised if (alert.kind, alert.family) not in self._noticed]
        self._noticed |= {(alert.kind, alert.family) for alert in new}
        return [Notice(f"headwatch: {a.kind.replace('_', ' ')}", a.text, a.level == WARNING) for a in new]


def summary_lines(histories: Mapping[str, HeadHistory], correct: Correct) -> dict[str, str]:
    """Each family's result in a few words."""
    return {
        family: sentences.summary(history, accuracy=[float(c.mean()) for c in correct[family]])["line"]
        for family, history in histories.items()
    }


def _drawn(data: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every family's figures as plotly JSON, named family/figure."""
    return {f"{family}/{name}": figure for family, f in data.items() for name, figure in plotly.draw(f).items()}
