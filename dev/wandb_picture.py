"""The picture of docs/images/wandb-panels.png: what W&B is sent of a recorded run, laid out in panels of W&B's size.

The numbers and figures are those of the run; the frame around them is drawn here. It is no picture of the W&B page.
`dev/pictures.py` takes the picture.

    python dev/wandb_picture.py headwatch-demo/grpo page.html
"""

import argparse
import json
from pathlib import Path
from typing import Any

import plotly
from plotly.offline import get_plotlyjs

from headwatch import RunFolder
from headwatch.record.replay import history_from_run
from headwatch.report import figure_data
from headwatch.report.plotly import draw
from headwatch.sinks.headlines import FIGURES, HEADLINES

WIDTH, HEIGHT = 440, 300  # of a panel, as W&B draws three columns on a screen of 1,400 pixels
PAGE = """<!doctype html><meta charset="utf-8"><title>W&B panels</title><style>
body {{ margin: 0; padding: 14px; background: #f7f8fa; font: 13px sans-serif; color: #333; width: {width}px; }}
h1 {{ font-size: 13px; margin: 4px 0 10px; font-weight: 600; }}
.grid {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; }}
.panel {{ background: #fff; border: 1px solid #e3e5e8; border-radius: 4px; padding: 6px 6px 0; height: {height}px; }}
.panel p {{ margin: 0; text-align: center; font-size: 12px; color: #555; }}
.panel.small {{ height: 170px; }}
</style><h1>{title}</h1><div class="grid">{panels}</div><script>{script}</script><script>
const panels = {data};
panels.forEach((figure, i) => Plotly.newPlot("p" + i, figure.data,
  Object.assign(figure.layout, {{ width: {inner}, height: figure.h }}), {{ staticPlot: true }}));
</script>"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("out")
    parser.add_argument("--family")
    arguments = parser.parse_args()
    text = page(RunFolder.open(arguments.run), arguments.family)
    Path(arguments.out).write_text(text, encoding="utf-8")
    print(f"{arguments.out}: plotly {plotly.__version__}")


def page(run: RunFolder, family: str | None = None) -> str:
    """The page as HTML: the panels of one family, the first one of the run unless it is named."""
    family = family or run.families[0]
    figures = draw(figure_data.all_figures(history_from_run(run, family), run.training()))
    shown = [(f"headwatch/{family}/{name}", figures[name], HEIGHT - 26) for name in FIGURES]
    shown += [(f"headwatch/{family}/{name}", curve(run, f"{family}/{name}"), 146) for name in HEADLINES]
    data = [{**figure, "h": height} for _, figure, height in shown]
    panels = "".join(
        f'<div class="panel{" small" if height < 200 else ""}"><p>{name}</p><div id="p{i}"></div></div>'
        for i, (name, _, height) in enumerate(shown)
    )
    return PAGE.format(
        width=3 * WIDTH + 20,
        height=HEIGHT,
        inner=WIDTH - 22,
        title=f"{figure_data.run_name(run)}: section headwatch/{family} ({len(shown)} panels)",
        panels=panels,
        script=get_plotlyjs(),
        data=json.dumps(data),
    )


def curve(run: RunFolder, name: str) -> dict[str, Any]:
    """A scalar over the steps, as W&B draws it."""
    rows = [(row["step"], row[name]) for row in run.scalars() if row.get(name) is not None]
    line = {"x": [step for step, _ in rows], "y": [value for _, value in rows], "mode": "lines", "type": "scatter"}
    axis = {"tickfont": {"size": 9}, "nticks": 5, "zeroline": False}
    layout = {"margin": {"l": 40, "r": 10, "t": 6, "b": 24}, "xaxis": axis, "yaxis": axis, "template": "none"}
    return {"data": [{**line, "line": {"color": "#479a5f", "width": 1.6}}], "layout": layout}


if __name__ == "__main__":
    main()
