"""SVG figures for papers, like the paper's figures 2, 3, 13 and 14, drawn with matplotlib.

matplotlib is an optional dependency (`pip install 'headwatch[figures]'`). Text is written as text, not as outlines.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data
from headwatch.report.figure_data import RULE_NAMES, Figure, histories_by_rule, run_name
from headwatch.report.palette import BAND_OPACITY, BASE, CELL, GAIN, GROUPS, INK, LOSS, NEW, RULE, SOFT, on_cell, ramp

WIDTH = 7.0  # inches: two columns of a paper
STYLE = {
    "svg.fonttype": "none",  # text, not outlines: it can be searched and edited
    "svg.hashsalt": "headwatch",  # the same run gives the same file
    "text.parse_math": False,  # a run may be named $x$
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
    """Write the figures of every run, family and rule into a directory.

    <run>-<family>-<rule>-course.svg    cohorts, reward (or loss) and activation frequency (the paper's figures 2 and 3)
    <run>-<family>-<rule>-effect.svg    E(l, h), layers by heads (13)
    <run>-<family>-<rule>-survival.svg  Kaplan-Meier curves with 95 % intervals
    <family>-<rule>-head-map.svg        heads that emerged in each run, sorted (14)

    A figure without data (no survival before a second probe, no emerged head) is omitted.

    Returns:
        The paths of the files.

    Raises:
        UserError: without matplotlib, and where the directory cannot be written.
    """
    matplotlib = _matplotlib()
    target = Path(directory)
    runs = [run if isinstance(run, RunFolder) else RunFolder.open(run) for run in run_folders]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            return [_save(figure, target / name) for name, figure in _figures(runs)]
    except OSError as error:
        raise UserError(f"--figures {str(target)!r} cannot be written ({error.strerror}): give a directory") from error


def _figures(runs: Sequence[RunFolder]) -> Iterator[tuple[str, Any]]:
    """(file name, figure) of every figure with data."""
    names = _unique([_slug(run_name(run)) for run in runs])
    by_family: dict[tuple[str, str], list[tuple[str, HeadHistory]]] = {}
    for run, name in zip(runs, names, strict=True):
        for history in _histories(run):
            stem = f"{name}-{_slug(history.family)}-{history.rule}"
            title = _short(f"{run_name(run)}, {history.family}, {RULE_NAMES[history.rule]}", 120)
            yield f"{stem}-course.svg", course_figure(history, run.training(), title)
            effect, curves = figure_data.effect_map(history), figure_data.survival(history)
            if effect["effect"]:
                yield f"{stem}-effect.svg", effect_figure(effect, title)
            if curves:
                yield f"{stem}-survival.svg", survival_figure(curves, int(max(np.diff(history.steps))), title)
            by_family.setdefault((history.family, history.rule), []).append((run_name(run), history))
    for (family, rule), histories in by_family.items():
        figure = head_map_figure(histories, _short(f"{family}, {RULE_NAMES[rule]}", 120))
        if figure is not None:
            yield f"{_slug(family)}-{rule}-head-map.svg", figure


def course_figure(history: HeadHistory, training: figure_data.Rows, title: str) -> Any:
    """(A) cohorts stacked, newly active line, retained dashed; (B) reward or loss; (C) activation frequency."""
    chart = figure_data.cohort_chart(history)
    map_height = 0.5 + _map_height(history.n_layers, history.n_heads)
    figure = _new_figure(2.5 + map_height, title)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.8, map_height), width_ratios=(3, 2))
    right, below = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, :])
    newly, retained = max(chart["newly_active"]), max(chart["retained"])
    if 0 < newly < 0.4 * retained:  # on one axis the base heads would flatten the new ones
        parts = grid[0, 0].subgridspec(2, 1, height_ratios=(3, 1))
        left, under = figure.add_subplot(parts[0]), figure.add_subplot(parts[1])
        left.tick_params(labelbottom=False)
    else:
        left = under = figure.add_subplot(grid[0, 0])
    _cohorts(left, under, chart)
    _training_curve(right, figure_data.training_curves(training))
    for axes in {left: 0, under: 0, right: 0}:
        axes.set_xlim(min(0, *chart["steps"]), max(chart["steps"][-1], 1))
    for axes in (under, right):
        axes.set_xlabel("training step")
    _frequency_map(below, figure_data.activation_frequency(history), len(chart["steps"]))
    handles = [
        _patch(BASE, "base head"),
        _patch(NEW, "emerged in training"),
        _patch("none", "active at the last probe", INK),
    ]
    figure.legend(handles=handles, ncols=3, loc="outside lower right", handlelength=1, borderpad=0)
    return figure


def effect_figure(effect: Figure, title: str) -> Any:
    """E(l, h), layers horizontally, heads vertically, from -1 (lost) to +1 (new).

    Dots: changed significantly and materially. A cell is struck through where its 95 % interval contains 0.
    """
    values = effect["effect"]
    layers, heads = len(values), len(values[0])
    lines = [title, f"Effect E(l, h) against the base, mean over probes; importance: {effect['measure']}"]
    if effect["changed"]:
        lines.append("dots: share changed significantly and materially by the last probe")
    if effect["low"] is not None:
        lines.append("struck through: the 95 % interval over the pairs contains 0 (not corrected over heads)")
    figure = _new_figure(1.0 + _map_height(layers, heads), "\n".join(lines))
    axes = figure.add_subplot()
    _map(axes, [[v if v is None else on_cell(GAIN if v > 0 else LOSS, abs(v)) for v in row] for row in values])
    for layer, head in effect["changed"]:
        axes.plot(layer, head, "o", color=INK, markersize=1.8)
    unsure = _interval_contains_zero(effect)
    # One polyline with gaps: a line for each cell would take longer than the rest of the figure.
    x = [at for layer, _ in unsure for at in (layer - 0.3, layer + 0.3, np.nan)]
    y = [at for _, head in unsure for at in (head + 0.3, head - 0.3, np.nan)]
    axes.plot(x, y, color=SOFT, linewidth=0.5)
    _effect_scale(figure, axes)
    return figure


def survival_figure(curves: dict[str, Figure], probe_interval: int, title: str) -> Any:
    """Kaplan-Meier curves of first spells with 95 % intervals; ticks: heads still active at the last probe."""
    figure = _new_figure(2.5, title)
    axes = figure.add_subplot()
    for group in ("base", "emerged"):
        if group not in curves:
            continue
        curve, colour = curves[group], GROUPS[group]
        time, survival = np.array(curve["time"], float), np.array(curve["survival"], float)
        low, high = (np.array([np.nan if v is None else v for v in curve[side]], float) for side in ("lower", "upper"))
        median = f"median {curve['median']:,} steps" if curve["median"] is not None else "median not reached"
        axes.fill_between(time, low, high, step="post", color=colour, alpha=BAND_OPACITY, linewidth=0)
        axes.step(time, survival, where="post", color=colour, label=f"{group} ({curve['spells']} spells, {median})")
        censored = np.array(curve["censored"], int) > 0
        axes.plot(time[censored], survival[censored], "|", color=colour, markersize=6)
    axes.set_ylim(0, 1.03)
    axes.set_xlim(left=0)
    axes.set_title("Survival of heads: first spells, 95 % interval; ticks: still active at the last probe")
    axes.set_xlabel(f"training steps since the head became active (resolution: {probe_interval:,} steps)")
    axes.set_ylabel("still active")
    axes.legend(loc="lower left")
    _hide_spines(axes)
    return figure


def head_map_figure(runs: Sequence[tuple[str, HeadHistory]], title: str) -> Any | None:
    """Heads that emerged in each run: one row per run, one column per head; None where no head emerged.

    The columns are those of the first run, then the further ones of the second, and so on. Dark: active at the run's
    last probe; pale: no longer active.
    """
    from matplotlib.patches import Rectangle

    emerged, active = [], []
    for _, history in runs:
        raster = figure_data.life_raster(history)
        heads = [tuple(h) for h, group in zip(raster["heads"], raster["group"], strict=True) if group == "joined"]
        emerged.append(sorted(heads))
        active.append({head for head in heads if history.active[-1][head]})
    columns = list(dict.fromkeys(head for heads in emerged for head in heads))
    if not columns:
        return None
    figure = _new_figure(1.15 + 0.24 * len(runs), title)
    axes = figure.add_subplot()
    width = max(len(columns), 24)  # so that a few heads are drawn as squares
    union: set[tuple[int, ...]] = set()
    for row, heads in enumerate(emerged):
        for head in heads:
            colour = NEW if head in active[row] else on_cell(NEW, 0.35)
            corner = (columns.index(head) - 0.45, row - 0.4)
            axes.add_patch(Rectangle(corner, 0.9, 0.8, facecolor=colour, edgecolor="none"))
        union |= set(heads)
        axes.text(width, row, f"{len(heads)} emerged, {len(union)} in all", va="center", color=SOFT)
    axes.set_xlim(-0.7, width - 0.3)
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set_yticks(range(len(runs)), [_short(name) for name, _ in runs])
    every = -(-len(columns) // 60)
    names = [f"L{layer}.H{head}" for layer, head in columns[::every]]
    axes.set_xticks(range(0, len(columns), every), names, rotation=90, fontsize=5.5)
    axes.tick_params(length=0)
    axes.set_title("Heads that emerged in each run (dark: active at its last probe), cumulative from the top")
    _hide_spines(axes, all_sides=True)
    return figure


# --- parts ------------------------------------------------------------------------------------------------------------


def _cohorts(axes: Any, under: Any, chart: Figure) -> None:
    """Newly active heads and their cohorts on `axes`, retained base heads on `under` (which may be the same)."""
    steps, cohorts = chart["steps"], chart["cohorts"]
    if cohorts and len(steps) > 1:
        colours = [ramp(k / max(1, len(cohorts) - 1)) for k in range(len(cohorts))]
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
        _hide_spines(part)


def _training_curve(axes: Any, curves: dict[str, Figure]) -> None:
    """Reward, or else loss or accuracy."""
    name = next((key for key in ("reward", "loss", "accuracy") if key in curves), None)
    if name is None:
        axes.text(0.5, 0.5, "no reward or loss logged", ha="center", transform=axes.transAxes, color=SOFT)
    else:
        curve = curves[name]
        axes.plot(curve["steps"], curve["values"], color=INK, linewidth=0.9)
        axes.set_title(f"B  {name.capitalize()}" + (f" ({curve['key']})" if curve["key"] != name else ""))
    _hide_spines(axes)


def _frequency_map(axes: Any, frequency: Figure, n_probes: int) -> None:
    base = {tuple(head) for head in frequency["base"]}
    colours = [
        [v if v is None else on_cell(BASE if (layer, head) in base else NEW, v) for head, v in enumerate(row)]
        for layer, row in enumerate(frequency["frequency"])
    ]
    _map(axes, colours, outlined=frequency["active_now"])
    axes.set_title(f"C  Activation frequency over {n_probes} probes; outlined: active at step {frequency['step']:,}")


def _interval_contains_zero(effect: Figure) -> list[tuple[int, int]]:
    """Heads with an effect whose 95 % interval contains 0; none where there are no intervals."""
    if effect["low"] is None:
        return []
    return [
        (layer, head)
        for layer, rows in enumerate(zip(effect["effect"], effect["low"], effect["high"], strict=True))
        for head, (value, low, high) in enumerate(zip(*rows, strict=True))
        if value and (low or 0.0) <= 0.0 <= (high or 0.0)
    ]


def _effect_scale(figure: Any, axes: Any) -> None:
    """A colour bar from -1 to 1 below the map, as vectors."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("effect", [LOSS, CELL, GAIN], N=41)
    place = {"location": "bottom", "shrink": 0.25, "aspect": 24, "pad": 0.02, "anchor": (0.0, 1.0)}
    scale = ScalarMappable(Normalize(-1, 1), colours)
    bar = figure.colorbar(scale, ax=axes, ticks=(-1, 0, 1), panchor=(0.0, 1.0), **place)
    bar.solids.set_rasterized(False)
    bar.outline.set_linewidth(0.4)


def _map(axes: Any, colours: list[list[str | None]], outlined: Sequence[Sequence[int]] = ()) -> None:
    """Layers horizontally, heads vertically, one vector rectangle per head; None where there is no head."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    places = [(layer, head, c) for layer, row in enumerate(colours) for head, c in enumerate(row) if c is not None]
    cells = [Rectangle((layer - 0.46, head - 0.46), 0.92, 0.92) for layer, head, _ in places]
    axes.add_collection(PatchCollection(cells, facecolors=[c for *_, c in places], edgecolors="none"))
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
    _hide_spines(axes, all_sides=True)


def _map_height(layers: int, heads: int) -> float:
    """Height in inches of a map of square cells: as wide as the page, cells of at most 0.22."""
    return heads * min(0.22, 0.88 * WIDTH / layers)


def _new_figure(height: float, title: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    figure.suptitle(
        "\n".join(_short(line, 120) for line in title.split("\n")), x=0.01, ha="left", fontsize=7, color=SOFT
    )
    return figure


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "headwatch"})
    return path


def _hide_spines(axes: Any, all_sides: bool = False) -> None:
    for side in ("top", "right", "bottom", "left") if all_sides else ("top", "right"):
        axes.spines[side].set_visible(False)


def _patch(colour: str, label: str, edge: str = "none") -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor=edge, label=label)


def _histories(run: RunFolder) -> list[HeadHistory]:
    """Every family by every rule of the run; none without a probe."""
    families = run.families if run.steps else ()
    return [history for family in families for history in histories_by_rule(run, family).values()]


def _short(text: str, most: int = 34) -> str:
    """The text in one line of at most `most` characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _slug(text: str) -> str:
    """The name as part of a file name: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "run"


def _unique(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}-{index + 1}" for index, name in enumerate(names)]


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "--figures needs matplotlib, which is not installed: pip install 'headwatch[figures]'"
        ) from error
    return matplotlib
