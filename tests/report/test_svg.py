import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from helpers.plain_run import write_plain_run
from helpers.synthetic_runs import write_synthetic_run

from headwatch.cli import main
from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data

pytest.importorskip("matplotlib", reason="needs the figures extra: matplotlib")
from headwatch.report import svg

HOSTILE = "</text><script>alert(1)</script> $x^2$ -- & \x07"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def written(grpo: RunFolder, sft: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("figures")
    paths = svg.write_figures([grpo, sft], folder)
    assert sorted(paths) == sorted(folder.iterdir())
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def test_figures_of_every_run_family_and_rule(written: dict[str, str]):
    stems = [f"synthetic-grpo-{family}-{rule}" for family in ("addition", "recall") for rule in ("evidence", "circuit")]
    stems += [f"synthetic-sft-addition-{rule}" for rule in ("evidence", "circuit")]
    expected = {f"{stem}-{what}.svg" for stem in stems for what in ("course", "effect", "survival")}
    maps = {name for name in written if name.endswith("head-map.svg")}
    assert {"addition-evidence-head-map.svg", "recall-evidence-head-map.svg"} <= maps
    assert set(written) - maps == expected


def test_files_are_self_contained_vectors(written: dict[str, str]):
    for name, text in written.items():
        root = ElementTree.fromstring(text)
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert not tags & {"script", "image", "foreignObject"}, name
        assert "text" in tags, name
        assert not [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href") and not v.startswith("#")]
        fonts = set(re.findall(r"font(?:-family)?: ([^;\"]*)", text))
        assert fonts
        assert all(font.endswith("sans-serif") for font in fonts), fonts
        assert len(text) < 300_000, name


def test_same_run_gives_same_file(sft: RunFolder, written: dict[str, str], tmp_path: Path):
    for path in svg.write_figures([sft], tmp_path):
        if not path.name.endswith("head-map.svg"):
            assert path.read_text(encoding="utf-8") == written[path.name], path.name


def test_course_counts_reward_and_map(grpo: RunFolder):
    history = HeadHistory.from_run(grpo)
    drawn = svg.course_figure(history, grpo.training(), "about")
    lines = {line.get_label(): line for axes in drawn.axes for line in axes.get_lines()}
    assert lines["newly active"].get_ydata().tolist() == history.newly_active()
    assert lines["retained base heads"].get_ydata().tolist() == figure_data.cohort_chart(history)["retained"]
    assert lines["retained base heads"].is_dashed()
    areas = [area for axes in drawn.axes for area in axes.collections if len(area.get_paths()) == 1]
    assert len(areas) == len(history.cohorts()) > 1
    reward = next(axes for axes in drawn.axes if axes.title.get_text().startswith("B  Reward"))
    assert (
        reward.get_lines()[0].get_ydata().tolist() == figure_data.training_curves(grpo.training())["reward"]["values"]
    )
    heat = next(axes for axes in drawn.axes if axes.title.get_text().startswith("C"))
    assert len(heat.patches) == history.active[-1].sum()
    colours = heat.collections[0].get_facecolors()
    assert len(colours) == history.n_layers * history.n_heads
    base = history.active[0].ravel()
    assert (colours[base, 0] > colours[base, 2]).all()  # red
    grown = history.active.any(axis=0).ravel() & ~base
    assert (colours[grown, 0] < colours[grown, 2]).all()  # blue


def test_survival_interval_and_head_map_order(grpo: RunFolder, sft: RunFolder):
    history = HeadHistory.from_run(grpo)
    curves = figure_data.survival(history)
    drawn = svg.survival_figure(curves, 10, "about").axes[0]
    assert len(drawn.collections) == len(curves)
    assert drawn.get_lines()[2].get_ydata().tolist() == curves["emerged"]["survival"]
    runs = [("one", history), ("two", HeadHistory.from_run(sft))]
    axes = svg.head_map_figure(runs, "about").axes[0]
    joined = [
        {tuple(h) for h, g in zip(r["heads"], r["group"], strict=True) if g == "joined"}
        for r in (figure_data.life_raster(h) for _, h in runs)
    ]
    assert len(axes.patches) == len(joined[0]) + len(joined[1])
    assert {text.get_text() for text in axes.texts} == {
        f"{len(joined[0])} emerged, {len(joined[0])} in all",
        f"{len(joined[1])} emerged, {len(joined[0] | joined[1])} in all",
    }
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [f"L{a}.H{b}" for a, b in [*sorted(joined[0]), *sorted(joined[1] - joined[0])]]


def test_hostile_names_are_text(tmp_path: Path):
    run = write_synthetic_run(tmp_path / "run", families=("../" + HOSTILE,), steps=range(0, 31, 10))
    run.update_manifest(name="../../" + HOSTILE)
    paths = svg.write_figures([run], tmp_path / "out")
    assert len(paths) > 4
    assert all(path.parent == tmp_path / "out" for path in paths)
    for path in paths:
        root = ElementTree.parse(path).getroot()
        assert not list(root.iter(f"{SVG}script"))
        assert any("</text><script>" in "".join(text.itertext()) for text in root.iter(f"{SVG}text"))


def test_figures_without_data_are_omitted(tmp_path: Path):
    empty, base = write_plain_run(tmp_path / "a", [], name="a"), write_plain_run(tmp_path / "b", [0], name="b")
    no_signal = write_plain_run(tmp_path / "c", [0, 10], name="c", gap=0.0)
    names = {path.name for path in svg.write_figures([empty, base, no_signal], tmp_path / "out")}
    assert names == {"b-addition-evidence-course.svg", "c-addition-evidence-course.svg"}


def test_command_writes_page_and_figures(sft: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, folder = tmp_path / "page.html", tmp_path / "figures"
    assert main(["report", "--figures", str(folder), str(sft.path), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(out)
    assert sorted(printed["figures"]) == sorted(str(path) for path in folder.iterdir())
    assert np.all([Path(path).is_file() for path in printed["figures"]])
    assert main(["report", "--figures", str(out), str(sft.path), "--out", str(out)]) == 2
    assert "--figures" in capsys.readouterr().err


def test_runs_of_the_same_name_get_separate_files(tmp_path: Path):
    runs = [write_plain_run(tmp_path / place, [0, 10], name="same") for place in ("a", "b")]
    names = [path.name for path in svg.write_figures(runs, tmp_path / "out")]
    assert len(set(names)) == len(names)
    assert {"same-1-addition-evidence-course.svg", "same-2-addition-evidence-course.svg"} <= set(names)
    with pytest.raises(UserError, match="not a run folder"):
        svg.write_figures([tmp_path], tmp_path / "out")
