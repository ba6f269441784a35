"""The page of an ablation: pass@1 of every arm with its interval, and the problems that changed."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwatch.report.heads_off import arm_label, verdict
from headwatch.report.palette import css_variables
from headwatch.version import __version__

FILE_NAME = "ablation.html"
WIDTH, LEFT, ROW = 900, 250, 22

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 66rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.random td, .note { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.axis { stroke: var(--rule); } .none { stroke: var(--base); stroke-dasharray: 3 3; }
.arm { stroke: var(--new); fill: var(--new); } .arm.random { stroke: var(--untested); fill: var(--untested); }
.arm.untouched { stroke: var(--base); fill: var(--base); } .arm line { stroke-width: 2; }
"""


def write_ablation_page(result: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of an ablation's result (ablation.json); returns its path.

    Args:
        result: "model", "groups" (name -> heads), "suites" (name -> arms and comparisons), "harness" (task -> arm
            -> numbers of lm-evaluation-harness).
        folder: where the page goes.
    """
    parts = [f"<h1>Heads off: {html.escape(str(result['model']))}</h1>"]
    for group, heads in result["groups"].items():
        parts.append(f"<p><b>{html.escape(group)}</b>: {len(heads)} heads: {html.escape(', '.join(heads))}</p>")
    for suite, found in result["suites"].items():
        parts.append(f"<h2>{html.escape(suite)}</h2>")
        parts += [_chart(found["arms"]), _table(found["arms"]), *_notes(found)]
    for task, arms in result.get("harness", {}).items():
        parts.append(f"<h2>{html.escape(task)}: all numbers</h2>")
        parts += [f"<p class=note>{html.escape(arm)}: {html.escape(str(row))}</p>" for arm, row in arms.items()]
    body = "\n".join(parts)
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>headwatch: heads off</title><style>{css_variables()}{_STYLE}</style>\n"
        f"{body}\n<p class=note>headwatch {__version__}. Intervals: 95 %, bootstrap over problems.</p></html>\n"
    )
    path = folder / FILE_NAME
    path.write_text(page, encoding="utf-8")
    return path


def _chart(arms: Sequence[Mapping[str, Any]]) -> str:
    """One line per arm: a dot at pass@1 and its interval; the dashed line is that with nothing off."""
    highest = math.ceil(10 * max(0.05, *(row["pass1"]["high"] for row in arms))) / 10
    scale = (WIDTH - LEFT - 20) / highest
    height = ROW * (len(arms) + 1) + 10
    lines = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="pass@1 of every arm">']
    for tick in (0.0, highest / 2, highest):
        x = LEFT + tick * scale
        lines.append(f'<line class=axis x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - 22}"/>')
        lines.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{100 * tick:.0f} %</text>')
    none = LEFT + arms[0]["pass1"]["value"] * scale
    lines.append(f'<line class=none x1="{none:.1f}" y1="0" x2="{none:.1f}" y2="{height - 22}"/>')
    for index, row in enumerate(arms):
        y = ROW * index + 14
        low, value, high = (LEFT + row["pass1"][name] * scale for name in ("low", "value", "high"))
        kind = "random" if row["random"] is not None else "" if row["group"] else "untouched"
        lines.append(
            f'<g class="arm {kind}"><line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>'
            f'<circle cx="{value:.1f}" cy="{y}" r="4"/></g>'
            f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{html.escape(arm_label(row))}</text>'
        )
    return "".join([*lines, "</svg>"])


def _table(arms: Sequence[Mapping[str, Any]]) -> str:
    titles = ("arm", "heads", "pass@1", "change", "p", "newly right", "newly wrong", "McNemar p")
    lines = [f"<table><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>"]
    for row in arms:
        cells = [html.escape(arm_label(row)), str(len(row["heads"])), _interval(row["pass1"])]
        if "against_none" in row:
            other = row["against_none"]
            cells += [_interval(other["difference"], "+"), f"{other['p_value']:.2g}"]
            cells += [str(len(other["newly_right"])), str(len(other["newly_wrong"])), f"{other['mcnemar_p']:.2g}"]
        else:
            cells += [""] * 5
        kind = " class=random" if row["random"] is not None else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "".join([*lines, "</table>"])


def _notes(found: Mapping[str, Any]) -> list[str]:
    labels = {arm["arm"]: html.escape(arm_label(arm)) for arm in found["arms"]}
    notes = [
        f"<p>{labels[row['arm']]} against the mean of {row['sets']} random sets "
        f"({_interval(row['random_mean'])}; from {100 * row['random_lowest']:.1f} to "
        f"{100 * row['random_highest']:.1f}): {_interval(row['difference'], '+')} points, p {row['p_value']:.2g} over "
        f"problems; rank among the sets: p {row['rank_p']:.2g}. <b>{_verdict(found['arms'], row)}</b></p>"
        for row in found["against_random"]
    ]
    for row in found["arms"]:
        if row["random"] is None and "against_none" in row:
            other = row["against_none"]
            right, wrong = (", ".join(map(str, other[name])) or "none" for name in ("newly_right", "newly_wrong"))
            notes.append(
                f"<p class=note>{labels[row['arm']]}: problems newly right: {right}; newly wrong: {wrong}.</p>"
            )
    return notes


def _verdict(arms: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
    arm = next(arm for arm in arms if arm["arm"] == row["arm"])
    return verdict(arm["against_none"]["difference"], row, arm.get("factor"))


def _interval(value: Mapping[str, float], sign: str = "") -> str:
    return "{0:{s}.1f} [{1:{s}.1f}, {2:{s}.1f}]".format(
        *(100 * value[name] for name in ("value", "low", "high")), s=sign
    )
