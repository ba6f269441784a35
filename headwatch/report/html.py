"""The report page: one self-contained HTML file of one or several runs, with data, script and style inside."""

import base64
import hashlib
import html
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.lives.history_view import RULES
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.recorded_settings import recorded_settings
from headwatch.record.replay import lost_probes
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, head_page_data, sentences
from headwatch.report.after_data import after_data
from headwatch.report.palette import css_variables
from headwatch.stats import EvidenceSettings
from headwatch.version import __version__

SCRIPTS = (  # in order of dependence; page.js draws the page
    *("util.js", "marks.js", "lives.js", "course.js", "maps.js", "raster.js", "compare.js", "signals.js", "events.js"),
    *("help.js", "after.js", "head.js", "summary.js", "page.js"),
)
FILE_NAME = "report.html"

PathLike = str | os.PathLike[str]


def write_report(
    run_folders: Sequence[PathLike | RunFolder] | PathLike | RunFolder, out: PathLike | None = None
) -> Path:
    """Write the report of one run, or of several for comparison. A run may still be in progress.

    Args:
        run_folders: run folders, or output directories of trainers that contain one.
        out: file or folder to write to; default: report.html in the first run folder.

    Returns:
        The path of the file.

    Raises:
        UserError: for a path that is not a run folder or cannot be written.
    """
    given = [run_folders] if isinstance(run_folders, (str, os.PathLike, RunFolder)) else list(run_folders)
    if not given:
        raise UserError("run_folders is empty: give at least one run folder")
    runs = [run if isinstance(run, RunFolder) else RunFolder.open(run) for run in given]
    target = Path(out) if out is not None else runs[0].path / FILE_NAME
    if target.is_dir():
        target = target / FILE_NAME
    page = render([run_data(run) for run in runs])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"out={str(target)!r} cannot be written ({error.strerror}): give a path that can be") from error
    return target


def render(runs: Sequence[dict[str, Any]]) -> str:
    """The page of some runs' data (`run_data`) as one string of HTML."""
    families = list(dict.fromkeys(family for run in runs for family in run["families"]))
    rules = [rule for rule in RULES if any(rule in f["rules"] for run in runs for f in run["families"].values())]
    opens_on = max(families, key=lambda family: _weight(runs, family), default=None)  # the first of equals
    data = {
        "headwatch_version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "families": families,
        "opens_on": opens_on,
        "rules": rules or ["evidence"],
        "runs": list(runs),
    }
    shown = [run["families"][opens_on] for run in runs if opens_on in run["families"]]
    first = [next((rule["headline"] for rule in family["rules"].values()), "") for family in shown]
    script = "\n".join(_part(f"page/{name}") for name in SCRIPTS)
    # Content security policy: nothing is loaded, and only this script runs, whatever a string in the data contains.
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    parts = {
        "POLICY": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'",
        "VERSION": __version__,
        "TITLE": html.escape("headwatch: " + ", ".join(str(run["name"]) for run in runs)),
        "HEADLINE": html.escape(" ".join(first)),
        "STYLE": f"{css_variables()}\n{_part('page/style.css')}",
        "DATA": json_for_html(data),
        "SCRIPT": f"\n{script}\n",
    }
    # One pass over the template, so that a marker inside the data is not replaced.
    pieces = _part("page/report.html").split("@@")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def run_data(run: RunFolder) -> dict[str, Any]:
    """Data of one run for the page, JSON-serialisable."""
    run = _CachedRun(run.path)
    if run.lost:
        warnings.warn(lost_probes(run.steps, run.lost), stacklevel=2)
    manifest, training, scalars = run.manifest, run.training(), run.scalars()
    probes = manifest.get("probes") or {}
    wandb = manifest.get("wandb") or {}
    costs = [row["seconds"] for row in scalars if isinstance(row.get("seconds"), (int, float))]
    memory = [row["peak_memory_mb"] for row in scalars if isinstance(row.get("peak_memory_mb"), (int, float))]
    families = {family: _family_data(run, family, training) for family in run.families} if run.steps else {}
    return {
        "name": figure_data.run_name(run),
        "status": run.status,
        "trainer": manifest.get("trainer"),
        "created": manifest.get("created"),
        "headwatch_version": manifest.get("headwatch_version"),
        "versions": manifest.get("versions") or {},
        "settings": recorded_settings(manifest),
        "evidence": asdict(EvidenceSettings.from_dict((manifest.get("settings") or {}).get("evidence") or {})),
        "wandb": wandb.get("url") or wandb.get("id"),
        "model": {key: value for key, value in manifest["model"].items() if key != "sources"},
        "probes": {
            "fingerprint": probes.get("fingerprint"),
            "n_pairs": probes.get("n_pairs"),
            "families": list(run.families),
            "tokenizer": probes.get("tokenizer"),
        },
        "steps": run.steps,
        "lost": lost_probes(run.steps, run.lost) if run.lost else None,
        "cost": {
            "seconds": figure_data.significant(float(np.median(costs)), 3) if costs else None,
            "peak_memory_mb": figure_data.significant(float(max(memory)), 4) if memory else None,
            "completeness_error": scalars[-1].get("completeness_error") if scalars else None,
        },
        "training": figure_data.training_curves(training),
        "examples": _examples(run),
        "alerts": sentences.alerts(run),
        "after": after_data(run),
        "families": families,
    }


def _weight(runs: Sequence[dict[str, Any]], family: str) -> int:
    """How much the runs have to report of a family."""
    return sum(run["families"][family]["summary"]["weight"] for run in runs if family in run["families"])


def view_data(
    history: HeadHistory, training: figure_data.Rows, heads: Sequence[tuple[int, int]] = (), pairs: int = 0
) -> dict[str, Any]:
    """Data of the figures of one family by one rule.

    Args:
        training: rows of the trainer's log.
        heads: in order of rank; the first ones get the data of a page of their own.
        pairs: number of pairs of the family.
    """
    lives = figure_data.life_raster(history)
    by_circuit = history.rule == "circuit"
    return {
        "headline": sentences.headline(history),
        "cohorts": figure_data.cohort_chart(history),
        "effect": figure_data.effect_map(history),
        "lives": {key: lives[key] for key in ("heads", "group", "lives")},
        "shares": head_page_data.share_paths(history, heads, pairs),
        "importance": head_page_data.importance_paths(history, heads) if by_circuit else None,
        "since_base": head_page_data.change_table(history, heads),
        "noise": figure_data.noise(history),
        "turnover": figure_data.turnover(history),
        "concentration": figure_data.concentration(history),
        "survival": figure_data.survival(history),
        "events": figure_data.event_list(history),
        "changes": figure_data.changes(history),
        "stability": figure_data.stability(history),
        "coupling": sentences.coupling(history, training),
    }


def json_for_html(data: Any) -> str:
    """JSON that is safe inside a script element: "<", ">" and "&" are escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _family_data(run: "_CachedRun", family: str, training: figure_data.Rows) -> dict[str, Any]:
    pairs, index = run.pairs_of(family), run.families.index(family)
    histories = figure_data.histories_by_rule(run, family)
    by_evidence, by_circuit = histories["evidence"], histories.get("circuit")
    heads, n_first = head_page_data.ranked_heads(histories.values())
    rules = {rule: view_data(history, training, heads, len(pairs)) for rule, history in histories.items()}
    null_band = None
    if by_circuit is not None:
        low, high = (_logged(run, f"{family}/circuit/membership_changes_by_chance_{end}") for end in ("low", "high"))
        rules["circuit"]["noise"] |= {"low": low, "high": high}
        null_band = (low[-1], high[-1]) if low[-1] is not None and high[-1] is not None else None
    scores = [run.read_scores(step) for step in run.steps]
    accuracy = [None if at.correct is None else float(at.correct[pairs].mean()) for at in scores]
    kl = [None if at.kl_from_base is None else float(at.kl_from_base[pairs].mean()) for at in scores]
    return {
        "pairs": len(pairs),
        "summary": sentences.summary(by_evidence, by_circuit, accuracy, null_band),
        "probe": {
            **figure_data.probe_curves(by_evidence, accuracy),
            "kl": [figure_data.significant(value, 3) for value in kl],
            "unit": _metric(run, family),
        },
        "rules": rules,
        "edges": head_page_data.strongest_edges(
            [place for place, step in enumerate(run.steps) if step in run.steps_with_edges],
            lambda place: run.edges(run.steps[place], index),
            (by_evidence.n_layers, by_evidence.n_heads),
            heads,
            n_first,
        ),
    }


def _metric(run: RunFolder, family: str) -> str:
    metric = (recorded_settings(run.manifest).get("scoring") or {}).get("metric")
    return str((metric.get(family) if isinstance(metric, dict) else metric) or "")  # a mapping where families differ


def _logged(run: RunFolder, name: str) -> list[float | None]:
    """A logged scalar at every probe, None where it is missing or not finite."""
    values = {row["step"]: row.get(name) for row in run.scalars()}
    numbers = {step: value for step, value in values.items() if figure_data.is_finite_number(value)}
    return [numbers.get(step) for step in run.steps]


def _examples(run: RunFolder) -> dict[str, dict[str, str]]:
    """The first pair of each family as text: from the manifest with the answers, or from the probe set without."""
    recorded = (run.manifest.get("probes") or {}).get("examples")
    if isinstance(recorded, dict):
        return {f: {str(k): str(v) for k, v in recorded[f].items()} for f in run.families if recorded.get(f)}
    try:
        texts = run.probe_texts()
    except UserError as error:
        warnings.warn(f"{error}; the report shows no example pairs", stacklevel=2)
        return {}
    first = dict(reversed(texts))
    return {f: {"clean": first[f][0], "corrupted": first[f][1]} for f in run.families if any(first.get(f, ()))}


class _CachedRun(RunFolder):
    """A run folder at one moment: each probe's scores read once and kept without the edges; lost probes left out.

    Attributes:
        steps_with_edges: steps whose scores include edges.
        lost: step -> what is wrong with it, of the probes that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._steps: list[int] | None = None
        self._scores: dict[int, ProbeScores] = {}
        self.steps_with_edges: set[int] = set()
        self.lost = {step: scores for step, scores in super().probes() if isinstance(scores, str)}
        self._steps = sorted(self._scores)

    @property
    def steps(self) -> list[int]:
        return super().steps if self._steps is None else self._steps

    def read_scores(self, step: int) -> ProbeScores:
        if step not in self._scores:
            scores = super().read_scores(step)
            if scores.edges_mean_abs is not None:
                self.steps_with_edges.add(step)
            self._scores[step] = replace(scores, edges_mean_abs=None)
        return self._scores[step]

    def probes(self) -> Iterator[tuple[int, ProbeScores | str]]:
        yield from sorted(self._scores.items())

    def edges(self, step: int, family: int) -> np.ndarray[Any, Any] | None:
        """Mean |edge score| [S, R] of a family at a step, read from the file each time: edges are large."""
        edges = super().read_scores(step).edges_mean_abs
        return None if edges is None or edges.ndim != 3 or family >= len(edges) else edges[family]


def _part(name: str) -> str:
    text = resources.files("headwatch.report").joinpath(name).read_text(encoding="utf-8")
    return "\n".join(line.strip() for line in text.splitlines())  # without indentation, a tenth of the page
