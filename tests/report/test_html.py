import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.page_dom import Dom
from helpers.plain_run import write_plain_run

from headwatch.errors import UserError
from headwatch.lives.history import HeadHistory
from headwatch.lives.states import HeadState
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, sentences
from headwatch.report.html import json_for_html, write_report

Browse = Callable[..., Dom]
HOSTILE = "</script><img src=x onerror=document.documentElement.dataset.owned=1><!--"


@pytest.fixture(scope="module")
def page(grpo: RunFolder) -> Path:
    return write_report(grpo)


def ready(dom: Dom) -> Dom:
    assert dom.root.get("data-error") is None
    assert dom.root.get("data-ready") == "yes"
    return dom


# --- the file ---------------------------------------------------------------------------------------------------------


def test_report_is_self_contained(page: Path, grpo: RunFolder):
    assert page == grpo.path / "report.html"
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 400_000
    assert not re.findall(r"https?:|//[a-z0-9-]+\.[a-z]", text.replace("http://www.w3.org/2000/svg", ""))
    assert not re.findall(r"\bsrc\s*=|<link|@import|\bfetch\(|XMLHttpRequest|\bimport\(", text)
    assert set(re.findall(r"url\([^)]*\)", text)) == {"url(#hatch)"}
    assert "default-src 'none'" in text
    assert "@@" not in text


def test_run_folders_and_output_path(tmp_path, grpo: RunFolder, sft: RunFolder):
    assert write_report(grpo.path.parent, tmp_path / "a" / "one.html").is_file()
    assert write_report([str(grpo.path), sft], tmp_path) == tmp_path / "report.html"
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="empty"):
        write_report([])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(grpo, tmp_path / "file" / "report.html")


def test_json_cannot_end_its_element():
    text = json_for_html({"name": HOSTILE, "line": "\u2028&"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["name"] == HOSTILE


def test_headline_without_script(page: Path, grpo: RunFolder):
    without = re.search(r"<noscript>(.*?)</noscript>", page.read_text(encoding="utf-8"), re.S)
    assert without is not None
    assert sentences.headline(HeadHistory.from_run(grpo)) in without.group(1)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "rule"), [("addition", "evidence"), ("recall", "circuit")])
def test_marks_match_the_data(page: Path, grpo: RunFolder, browse: Browse, family: str, rule: str):
    history = HeadHistory.from_run(grpo, family, rule)
    dom = ready(browse(page, f"family={family}&rule={rule}"))
    heads = history.n_layers * history.n_heads
    assert len(dom.find("cell", inside="where")) == 2 * heads
    assert len(dom.find("outline", inside="where")) == history.active[-1].sum()
    drawn = {
        n.attributes["data-head"]: float(n.attributes["data-frequency"])
        for n in dom.find("fill")
        if "data-frequency" in n.attributes
    }
    frequency = history.activation_frequency()
    expected = {f"{layer}.{head}": frequency[layer, head] for layer, head in np.argwhere(frequency > 0)}
    assert drawn == pytest.approx(expected, abs=1e-3)
    assert len(dom.find("effect")) == np.isfinite(history.effect()).sum()
    assert [int(n.attributes["data-step"]) for n in dom.find("cohort")] == sorted(history.cohorts())
    raster = figure_data.life_raster(history)
    rows = [n.attributes["data-head"] for n in dom.find("life")]
    n_base = raster["group"].count("base") if rule == "evidence" else 0  # these are drawn by |share|
    in_order = [f"{a}.{b}" for a, b in raster["heads"]]
    assert rows[n_base:] == in_order[n_base:]
    assert sorted(rows[:n_base]) == sorted(in_order[:n_base])
    sizes = [abs(history.share[-1][tuple(map(int, row.split(".")))]) for row in rows[:n_base]]
    assert all(one >= other - 1e-3 for one, other in itertools.pairwise(sizes))  # the page's shares are rounded
    assert sizes == [] or sizes[0] > 2 * sizes[-1]
    assert len(dom.find("event")) == len(history.events) > 0
    assert {n.attributes["data-group"] for n in dom.find("survival")} == set(figure_data.survival(history))
    assert {n.attributes["data-series"] for n in dom.find("series")} == {"reward", "probe", "gap"}
    assert dom.texts("headline", inside="titles") == [sentences.headline(history)]
    assert ("Circuit rule" if rule == "circuit" else "Evidence rule") in next(
        n.text for n in dom.nodes if n.attributes.get("id") == "rule-note"
    )


def test_step_moves_maps_counts_and_events(page: Path, grpo: RunFolder, browse: Browse):
    history = HeadHistory.from_run(grpo)
    index = len(history.steps) // 2
    step = history.steps[index]
    dom = ready(browse(page, f"step={step}&head=L0.H0&theme=dark"))
    assert dom.root["data-theme"] == "dark"
    assert len(dom.find("outline", inside="where")) == history.active[index].sum() != history.active[-1].sum()
    numbers = [int(re.match(r"\d+", cell).group()) for cell in dom.texts(inside="state-counts", tag="b")]
    state = history.state[index]
    count = {s: int((state == s).sum()) for s in HeadState}
    retained = count[HeadState.BASE] + count[HeadState.RETAINED]
    shown = [HeadState.DROPPED, HeadState.EMERGED, HeadState.REEMERGED, HeadState.PRUNED]
    moved = figure_data.changes(history)
    assert numbers == [
        int(history.active[index].sum()),
        retained,
        *(count[s] for s in shown),
        moved["strengthened"][index],
        moved["weakened"][index],
    ]
    assert len(dom.find("later")) == sum(event.step > step for event in history.events) > 0
    assert dom.find("veil")


def test_two_runs_side_by_side(grpo: RunFolder, sft: RunFolder, browse: Browse, tmp_path):
    dom = ready(browse(write_report([grpo, sft], tmp_path)))
    histories = [HeadHistory.from_run(run) for run in (grpo, sft)]
    assert len(dom.find("course", tag="svg")) == len(dom.find("headline", inside="titles")) == 2
    joined = [
        {tuple(h) for h, group in zip(raster["heads"], raster["group"], strict=True) if group == "joined"}
        for raster in map(figure_data.life_raster, histories)
    ]
    assert len(dom.find("emerged-head", tag="circle")) == sum(len(heads) for heads in joined)
    text = " ".join(dom.texts(inside="comparison", tag="p"))
    assert f"{len(joined[0] & joined[1])} of {len(joined[0] | joined[1])} emerged heads in common" in text
    # Same tick labels in both columns, of the strip that both have: the first one.
    charts = dom.find("course", tag="svg")
    ticks = [
        [n.text for n in dom.find(tag="text") if chart in n.inside and n.attributes.get("text-anchor") == "end"]
        for chart in charts
    ]
    first = [labels[: labels.index("0", 1)] for labels in ticks]
    assert len(first[0]) > 1
    assert first[0] == first[1]
    only = ready(browse(tmp_path / "report.html", "family=recall"))
    assert "no probes of the family recall" in " ".join(only.texts("headline", inside="titles"))


def test_missing_data_is_named(browse: Browse, tmp_path):
    runs = [
        write_plain_run(tmp_path / "a", [0], name="base only"),
        write_plain_run(tmp_path / "b", [0, 10], name="one layer", layers=1, heads=8, status="finished"),
        write_plain_run(tmp_path / "c", [0, 10], name="no signal", gap=0.0),
        write_plain_run(tmp_path / "d", [], name="empty"),
    ]
    dom = ready(browse(write_report(runs, tmp_path)))
    headlines = dom.texts("headline", inside="titles")
    for text, headline in zip(("No training step", "No head has emerged", "Insufficient"), headlines, strict=False):
        assert text in headline
    assert headlines[3] == "No probe has been taken yet."
    assert dom.texts("status") == ["running", "finished", "running", "running"]
    assert len(dom.find("weak")) == 2  # both probes of the third
    assert "differ in shape" in " ".join(dom.texts(inside="comparison", tag="p"))
    assert "NaN" not in dom.source.split("<script type", 1)[0]
    assert dom.texts("empty", inside="events")[0].startswith("No event")
    alone = ready(browse(write_report(runs[0], tmp_path / "alone.html")))
    assert not alone.find(inside="now-control")  # one probe only
    assert not alone.find(inside="survival")


def test_large_model_is_drawn_whole(browse: Browse, tmp_path):
    run = write_plain_run(tmp_path, [0, 10], layers=48, heads=40)
    dom = ready(browse(write_report(run)))
    assert len(dom.find("cell", inside="where")) == 2 * 48 * 40
    assert len(dom.find("life")) == len(figure_data.life_raster(HeadHistory.from_run(run))["heads"])


def test_hostile_values_stay_text(browse: Browse, tmp_path):
    run = write_plain_run(tmp_path, [0, 10], name=HOSTILE)
    run.update_manifest(status=HOSTILE, settings={HOSTILE: "@@DATA@@"}, trainer=HOSTILE, versions={HOSTILE: "1"})
    run.update_manifest(probes={**run.manifest["probes"], "families": [HOSTILE], "fingerprint": HOSTILE})
    page = write_report(run)
    dom = ready(browse(page))
    assert "data-owned" not in dom.root
    assert not [node for node in dom.nodes if node.tag == "img"]
    assert dom.texts("run-name")[0].startswith(HOSTILE)
    assert "@@DATA@@" in " ".join(dom.texts(tag="pre"))
    # Even markup in the page is not run, by its content security policy.
    page.write_text(page.read_text(encoding="utf-8").replace("</footer>", "</footer>" + HOSTILE), encoding="utf-8")
    dom = browse(page)
    assert [node for node in dom.nodes if node.tag == "img"]
    assert "data-owned" not in dom.root


def test_script_failure_is_shown(page: Path, browse: Browse, tmp_path):
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(text.replace('"families":[', '"families":0,"was":['), encoding="utf-8")
    dom = browse(broken)
    assert "data-ready" not in dom.root
    assert dom.root["data-error"]
    assert "script stopped" in next(n.text for n in dom.nodes if n.attributes.get("id") == "failure")


def test_nothing_finite_logged(browse: Browse, tmp_path):
    run = write_plain_run(tmp_path, [0, 10])
    run.append_training(5, {"loss": float("nan"), "reward": float("inf"), "note": 1})
    run.append_scalars(0, {"seconds": float("nan"), "completeness_error": None})
    dom = ready(browse(write_report(run)))
    assert {n.attributes["data-series"] for n in dom.find("series")} == {"gap"}


def test_probe_pairs_are_shown_as_text(browse: Browse, tmp_path):
    torch = pytest.importorskip("torch")
    from headwatch.probes import ProbeSet

    tokens = torch.arange(12).reshape(2, 6)
    probes = ProbeSet.from_token_ids(
        tokens, tokens + 1, answers=torch.tensor([[1, 2], [1, 2]]), families=["addition"] * 2
    )
    from dataclasses import replace

    run = write_plain_run(tmp_path, [0])
    replace(probes, texts=((HOSTILE, "Compute 1+2"), ("", ""))).save(run.path / "probes.safetensors")
    dom = ready(browse(write_report(run)))
    assert dom.texts(inside="pair", tag="code") == [HOSTILE, "Compute 1+2"]
    assert "data-owned" not in dom.root
