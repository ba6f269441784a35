"""Figures of runs as SVG files for papers, in the manner of the paper's figures 2, 3, 13 and 14. Drawn by matplotlib.

matplotlib and not our own SVG: ticks, step areas and layout are its trade, and who writes a paper has it. It is an
optional extra (`pip install 'headwatch[figures]'`), loaded only here. Text stays text, in the reader's own sans-serif.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.record.replay import history_from_run
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data
from headwatch.report.figure_data import RULE_NAMES, Figure

BASE, NEW, BACK, INK, SOFT, RULE = "#c0432b", "#1f66b0", "#7b4fb5", "#1c1e22", "#666a72", "#d8d7d1"
GAIN, LOSS, CELL = "#0b7a6f", "#9a6412", "#f3f2ee"
WIDTH = 7.0  # inches: two columns of a paper
STYLE = {
    "svg.fonttype": "none",  # letters stay letters: searchable, and editable in the paper's own face
    "svg.hashsalt": "headwatch",  # the same run gives the same file
    "text.parse_math": False,  # a run called $x$ is a name, not mathematics
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}


def write_figures(
    run_folders: Sequence[str | os.PathLike[str] | RunFolder], directory: str | os.PathLike[str]
) -> list[Path]:
    """Write every figure of every run, family and rule into a directory, and return the files' paths.

    <run>-<family>-<rule>-course.svg   cohorts, reward (or loss) and activation frequency (the paper's figures 2 and 3)
    <run>-<family>-<rule>-effect.svg   E(l, h), layers by heads (13)
    <run>-<family>-<rule>-survival.svg Kaplan-Meier curves with their 95 % interval
    <family>-<rule>-head-map.svg       which heads each run added, cumulative and sorted (14)

    A figure with nothing to show (no survival before a second probe, no head added) is left out. UserError where
    matplotlib is missing or the directory cannot be written.
    """
    matplotlib = _matplotlib()
    target = Path(directory)
    runs = [run if isinstance(run, RunFolder) else RunFolder.open(run) for run in run_folders]
    names = _unique([_slug(_name(run)) for run in runs])
    written: list[Path] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            added: dict[tuple[str, str], list[tuple[str, HeadHistory]]] = {}
            for run, name in zip(runs, names, strict=True):
                for history in _histories(run):
                    stem = f"{name}-{_slug(history.family)}-{history.rule}"
                    about = _short(f"{_name(run)}, {history.family}, {RULE_NAMES[history.rule]}", 120)
                    written.append(_save(course_figure(history, run.training(), about), target / f"{stem}-course.svg"))
                    effect = figure_data.effect_map(history)
                    if effect["effect"]:
                        written.append(_save(effect_figure(effect, about), target / f"{stem}-effect.svg"))
                    curves = figure_data.survival(history)
                    if curves:
                        cadence = int(max(np.diff(history.steps)))
                        written.append(_save(survival_figure(curves, cadence, about), target / f"{stem}-survival.svg"))
                    added.setdefault((history.family, history.rule), []).append((_name(run), history))
            for (family, rule), told in added.items():
                drawn = head_map_figure(told, _short(f"{family}, {RULE_NAMES[rule]}", 120))
                if drawn is not None:
                    written.append(_save(drawn, target / f"{_slug(family)}-{rule}-head-map.svg"))
    except OSError as error:
        raise UserError(f"--figures {str(target)!r} cannot be written ({error.strerror}): give a directory") from error
    return written


def course_figure(history: HeadHistory, training: figure_data.Rows, about: str) -> Any:
    """(A) cohorts stacked, newly active line, retained dashed; (B) reward or loss; (C) activation frequency."""
    chart, curves = figure_data.cohort_chart(history), figure_data.training_curves(training)
    frequency = figure_data.activation_frequency(history)
    layers, heads = history.n_layers, history.n_heads
    rows = 0.5 + _map_height(layers, heads)
    figure = _new_figure(2.5 + rows, about)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.8, rows), width_ratios=(3, 2))
    right, below = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, :])
    newly, retained = max(chart["newly_active"]), max(chart["retained"])
    if 0 < newly < 0.4 * retained:  # on one axis the base heads would flatten the new ones
        parts = grid[0, 0].subgridspec(2, 1, height_ratios=(3, 1))
        left, under = figure.add_subplot(parts[0]), figure.add_subplot(parts[1])
        left.tick_params(labelbottom=False)
    else:
        left = under = figure.add_subplot(grid[0, 0])
    _cohorts(left, under, chart)
    name = next((key for key in ("reward", "loss", "accuracy") if key in curves), None)
    if name is None:
        right.text(0.5, 0.5, "no reward or loss logged", ha="center", transform=right.transAxes, color=SOFT)
    else:
        curve = curves[name]
        right.plot(curve["steps"], curve["values"], color=INK, linewidth=0.9)
        right.set_title(f"B  {name[0].upper()}{name[1:]}" + (f" ({curve['key']})" if curve["key"] != name else ""))
    for axes in {left: 0, under: 0, right: 0}:
        axes.set_xlim(min(0, *chart["steps"]), max(chart["steps"][-1], 1))
    for axes in (under, right):
        axes.set_xlabel("training step")
    _open(right)
    base = {tuple(head) for head in frequency["base"]}
    colours = [
        [_blend(BASE if (layer, head) in base else NEW, value) for head, value in enumerate(row)]
        for layer, row in enumerate(frequency["frequency"])
    ]
    _map(below, colours, outlined=frequency["active_now"])
    below.set_title(
        f"C  Activation frequency over {len(chart['steps'])} probes; outlined: active at step {frequency['step']:,}"
    )
    handles = [
        _patch(BASE, "base head"),
        _patch(NEW, "emerged in training"),
        _patch("none", "active at the last probe", INK),
    ]
    figure.legend(handles=handles, ncols=3, loc="outside lower right", handlelength=1, borderpad=0)
    return figure


def effect_figure(effect: Figure, about: str) -> Any:
    """E(l, h), layers across, heads down, from -1 (lost) to +1 (new); dots: changed significantly and materially.

    A bar through a cell: the 95 % interval contains 0.
    """
    values = effect["effect"]
    layers, heads = len(values), len(values[0])
    title = f"Effect E(l, h) against the base, mean over probes; importance: {effect['measure']}"
    if effect["changed"]:
        title += "\ndots: share changed significantly and materially by the last probe"
    unsure = []
    if effect["low"] is not None:
        title += "\nstruck through: the 95 % interval over the pairs contains 0 (each head by itself)"
        unsure = [
            (layer, head)
            for layer, rows in enumerate(zip(values, effect["low"], effect["high"], strict=True))
            for head, (value, low, high) in enumerate(zip(*rows, strict=True))
            if value and (low or 0.0) <= 0.0 <= (high or 0.0)
        ]
    figure = _new_figure(1.0 + _map_height(layers, heads), f"{about}\n{title}")
    axes = figure.add_subplot()
    _map(axes, [[_blend(GAIN if (v or 0) > 0 else LOSS, abs(v or 0)) for v in row] for row in values])
    for layer, head in effect["changed"]:
        axes.plot(layer, head, "o", color=INK, markersize=1.8)
    # One line with gaps: a line a cell would take longer than the rest of the figure.
    across = [x for layer, _ in unsure for x in (layer - 0.3, layer + 0.3, np.nan)]
    down = [y for _, head in unsure for y in (head + 0.3, head - 0.3, np.nan)]
    axes.plot(across, down, color=SOFT, linewidth=0.5)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("effect", [LOSS, CELL, GAIN], N=41)
    where = {
        "location": "bottom",
        "shrink": 0.25,
        "aspect": 24,
        "anchor": (0.0, 1.0),
        "panchor": (0.0, 1.0),
        "pad": 0.02,
    }
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), colours), ax=axes, ticks=(-1, 0, 1), **where)
    bar.solids.set_rasterized(False)
    bar.outline.set_linewidth(0.4)
    return figure


def survival_figure(curves: dict[str, Figure], cadence: int, about: str) -> Any:
    """Kaplan-Meier curves of first spells with their 95 % interval; ticks are heads still active when last seen."""
    figure = _new_figure(2.5, about)
    axes = figure.add_subplot()
    for group, colour in (("base", BASE), ("emerged", NEW)):
        if group not in curves:
            continue
        curve = curves[group]
        time, survival = np.array(curve["time"], float), np.array(curve["survival"], float)
        low, high = (np.array([np.nan if v is None else v for v in curve[side]], float) for side in ("lower", "upper"))
        median = f"median {curve['median']:,} steps" if curve["median"] is not None else "median not reached"
        axes.fill_between(time, low, high, step="post", color=colour, alpha=0.16, linewidth=0)
        axes.step(time, survival, where="post", color=colour, label=f"{group} ({curve['spells']} spells, {median})")
        seen = np.array(curve["censored"], int) > 0
        axes.plot(time[seen], survival[seen], "|", color=colour, markersize=6)
    axes.set_ylim(0, 1.03)
    axes.set_xlim(left=0)
    axes.set_title("Survival of heads: first spells, 95 % interval; ticks: still active when last seen")
    axes.set_xlabel(f"training steps since the head became active (ends known to within {cadence:,} steps)")
    axes.set_ylabel("still active")
    axes.legend(loc="lower left")
    _open(axes)
    return figure


def head_map_figure(runs: Sequence[tuple[str, HeadHistory]], about: str) -> Any | None:
    """Which heads each run added: a row a run, a column a head, each run's new heads to the right of the ones before.

    Dark: active at the run's last probe; pale: added and gone again. None where no run added a head.
    """
    added, active = [], []
    for _, history in runs:
        raster = figure_data.life_raster(history)
        mine = [tuple(h) for h, group in zip(raster["heads"], raster["group"], strict=True) if group == "joined"]
        added.append(sorted(mine))
        active.append({head for head in mine if history.active[-1][head]})
    columns = list(dict.fromkeys(head for mine in added for head in mine))
    if not columns:
        return None
    figure = _new_figure(1.15 + 0.24 * len(runs), about)
    axes = figure.add_subplot()
    from matplotlib.patches import Rectangle

    seen: set[tuple[int, ...]] = set()
    for row, mine in enumerate(added):
        for head in mine:
            colour = NEW if head in active[row] else _blend(NEW, 0.35)
            at = columns.index(head)
            axes.add_patch(Rectangle((at - 0.45, row - 0.4), 0.9, 0.8, facecolor=colour, edgecolor="none"))
        seen |= set(mine)
        said = f"{len(mine)} added, {len(seen)} in all"
        axes.text(max(len(columns), 24), row, said, va="center", color=SOFT)
    axes.set_xlim(-0.7, max(len(columns), 24) - 0.3)  # a few heads are drawn as squares, not as banners
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set_yticks(range(len(runs)), [_short(name) for name, _ in runs])
    every = -(-len(columns) // 60)
    axes.set_xticks(
        range(0, len(columns), every),
        [f"L{layer}.H{head}" for layer, head in columns[::every]],
        rotation=90,
        fontsize=5.5,
    )
    axes.tick_params(length=0)
    axes.set_title("Heads added by each run (dark: active at its last probe), cumulative from the top")
    _open(axes, all_sides=True)
    return figure


# --- parts ------------------------------------------------------------------------------------------------------------


def _cohorts(axes: Any, under: Any, chart: Figure) -> None:
    """Newly active heads and their cohorts on `axes`, retained base heads on `under` (which may be the same)."""
    steps, cohorts = chart["steps"], chart["cohorts"]
    if cohorts and len(steps) > 1:
        colours = [_ramp(k / max(1, len(cohorts) - 1)) for k in range(len(cohorts))]
        axes.stackplot(steps, *(c["active"] for c in cohorts), colors=colours, edgecolor="white", linewidth=0.3)
    axes.plot(steps, chart["newly_active"], color=INK, label="newly active", marker="o", markersize=1.6)
    under.plot(steps, chart["retained"], color=BASE, dashes=(4, 2.5), label="retained base heads")
    axes.set_title("A  Active heads; areas: cohorts by first emergence", pad=15)
    handles = [*axes.get_lines()[:1], *under.get_lines()[-1:]]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, borderaxespad=0, borderpad=0.2)
    for part in {axes: 0, under: 0}:
        for at, good in zip(steps, chart["signal"], strict=True):
            if not good:
                part.axvline(at, color=RULE, linewidth=2.5, zorder=0)
        part.set_ylim(bottom=0)
        part.margins(y=0.15)
        part.yaxis.get_major_locator().set_params(integer=True)
        _open(part)


def _map(axes: Any, colours: list[list[str]], outlined: Sequence[Sequence[int]] = ()) -> None:
    """Layers across, heads down, a square a head: vector rectangles, no image."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    places = [(layer, head) for layer, row in enumerate(colours) for head in range(len(row))]
    cells = [Rectangle((layer - 0.46, head - 0.46), 0.92, 0.92) for layer, head in places]
    axes.add_collection(PatchCollection(cells, facecolors=[c for row in colours for c in row], edgecolors="none"))
    for layer, head in outlined:
        axes.add_patch(Rectangle((layer - 0.46, head - 0.46), 0.92, 0.92, fill=False, edgecolor="black", linewidth=0.9))
    layers, heads = len(colours), len(colours[0])
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(heads - 0.4, -0.6)
    axes.set_aspect("equal")
    axes.set_anchor("W")
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    for axis, n in ((axes.xaxis, layers), (axes.yaxis, heads)):
        axis.set_ticks(range(0, n, 1 if n <= 14 else 2 if n <= 40 else 5))
    axes.tick_params(length=0)
    _open(axes, all_sides=True)


def _map_height(layers: int, heads: int) -> float:
    """Inches that a map of square cells takes: as wide as the page, and no cell larger than 0.22."""
    return heads * min(0.22, 0.88 * WIDTH / layers)


def _new_figure(height: float, about: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    figure.suptitle(
        "\n".join(_short(line, 120) for line in about.split("\n")), x=0.01, ha="left", fontsize=7, color=SOFT
    )
    return figure


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "headwatch"})
    return path


def _open(axes: Any, all_sides: bool = False) -> None:
    for side in ("top", "right", "bottom", "left") if all_sides else ("top", "right"):
        axes.spines[side].set_visible(False)


def _patch(colour: str, label: str, edge: str = "none") -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor=edge, label=label)


def _blend(colour: str, strength: float) -> str:
    """The colour at a strength in [0, 1], over the empty cell's."""
    ends = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (CELL, colour)]
    weight = 0.0 if strength <= 0 else 0.12 + 0.88 * min(strength, 1.0)
    return "#" + "".join(f"{round(a + (b - a) * weight):02x}" for a, b in zip(*ends, strict=True))


def _ramp(t: float) -> str:
    """Early cohorts dark, late ones light: an order that survives any colour vision and a grey print."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list("cohorts", ["#1c3a78", "#2f8fae", "#b7dfb0"])(t))


def _histories(run: RunFolder) -> list[HeadHistory]:
    """Every family by every rule that the run has, where there is a probe."""
    if not run.steps:
        return []
    first = run.read_scores(run.steps[0])
    rules = ["evidence"] + (["circuit"] if first.circuit_active is not None and first.importance is not None else [])
    return [history_from_run(run, family, rule) for family in run.families for rule in rules]


def _name(run: RunFolder) -> str:
    return str(run.manifest.get("name") or run.path.parent.name)


def _short(text: str, most: int = 34) -> str:
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _slug(text: str) -> str:
    """A name that is safe in a file's: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "run"


def _unique(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}-{index + 1}" for index, name in enumerate(names)]


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "--figures draws with matplotlib, which is not installed: pip install 'headwatch[figures]'"
        ) from error
    return matplotlib
