"""Content of the page: summary, alerts, signals, comparison, page of a head, size, hostile strings."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import Page
from helpers.plain_run import write_plain_run
from helpers.synthetic_runs import write_synthetic_run

from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report import figure_data, sentences
from headwatch.report.html import render, run_data, write_report

Visit = Callable[..., Page]
HOSTILE = "</script><img src=x onerror=document.documentElement.dataset.owned=1><!--"
TEXT = "document.querySelector('{}').innerText"


def texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")


def test_summary_of_each_family(grpo: RunFolder, visit: Visit, tmp_path: Path):
    page = visit(write_report(grpo, tmp_path))
    summaries = {name: texts(page, f".summary > details:nth-child({i + 1}) li") for i, name in enumerate(grpo.families)}
    for family, shown in summaries.items():
        history, circuit = HeadHistory.from_run(grpo, family), HeadHistory.from_run(grpo, family, "circuit")
        accuracy = [float(grpo.read_scores(s).correct[grpo.pairs_of(family)].mean()) for s in grpo.steps]
        last = grpo.scalars()[-1]
        null_band = tuple(last[f"{family}/circuit/membership_changes_by_chance_{end}"] for end in ("low", "high"))
        assert shown == sentences.summary(history, circuit, accuracy, null_band)["sentences"]
        assert "its null band (0 to 2 between two halves" in " ".join(shown)
    joined = [
        {f"L{a}.H{b}" for (a, b), g in zip(r["heads"], r["group"], strict=True) if g == "joined"}
        for r in (figure_data.life_raster(HeadHistory.from_run(grpo, family)) for family in grpo.families)
    ]
    both = joined[0] & joined[1]
    across = page.run("document.querySelector('.across').textContent")
    assert f"in every family {', '.join(sorted(both)) or 'none'};" in across
    assert page.problems == []


def test_without_events_the_page_opens_on_a_head_with_a_changed_share(visit: Visit, tmp_path: Path):
    run = write_plain_run(tmp_path, [0, 10])
    scores = run.read_scores(10)
    order = np.abs(scores.head_scores.mean(0)).ravel().argsort()[::-1]
    layer, head = np.unravel_index(order[1], scores.head_scores.shape[1:])  # not the strongest head
    scores.head_scores[:, layer, head] *= 1.2
    run.write_scores(10, scores)
    page = visit(write_report(run))
    assert page.run("document.querySelector('#where .inspector b').textContent") == f"L{layer}.H{head}"
    assert page.problems == []


def test_survival_of_heads_that_all_stay_is_a_sentence(grpo: RunFolder, visit: Visit, tmp_path: Path):
    shown = "document.querySelector('#survival svg').checkVisibility()"
    assert visit(write_report(grpo, tmp_path)).run(shown)
    run = write_plain_run(tmp_path / "stays", [0, 10, 20])
    for step in (10, 20):  # the weakest head gets the largest share, and stays
        scores = run.read_scores(step)
        means = np.abs(scores.head_scores.mean(0))
        layer, head = np.unravel_index(means.argmin(), means.shape)
        scores.head_scores[:, layer, head] += scores.head_scores[:, *np.unravel_index(means.argmax(), means.shape)]
        run.write_scores(step, scores)
    page = visit(write_report(run))
    assert not page.run(shown)
    assert page.run(TEXT.format("#survival")).endswith("emerged 1 of 1 active, base 8 of 8 active.")
    assert page.problems == []


@pytest.mark.filterwarnings("ignore:.*cut short")
def test_latest_alert_of_each_kind(grpo: RunFolder, visit: Visit, tmp_path: Path):
    run = write_plain_run(tmp_path, [0, 10, 20])
    rows = [
        {"step": 10, "kind": "base_dropped", "family": "addition", "text": "old", "level": "warning"},
        {"step": 10, "kind": "unstable", "family": "", "text": "insufficient data", "level": "status"},
        {"step": 20, "kind": "base_dropped", "family": "addition", "text": f"addition: {HOSTILE}", "level": "warning"},
    ]
    torn = '{"step": 20, "kind": "ine'
    (run.path / "alerts.jsonl").write_text("\n".join([*map(json.dumps, rows), "[1]", torn]), encoding="utf-8")
    page = visit(write_report(run))
    assert texts(page, ".alerts li") == [
        f"alert: addition: {HOSTILE} (steps 10 to 20)",
        "Earlier status: insufficient data (step 10)",
    ]
    assert page.run("document.documentElement.dataset.owned") is None
    assert page.problems == []


def test_signals_match_the_history(grpo: RunFolder, visit: Visit, tmp_path: Path):
    history = HeadHistory.from_run(grpo, "addition")
    page = visit(write_report(grpo, tmp_path), "family=addition")
    drawn = page.run("[...document.querySelectorAll('#signals path.signal')].map((p) => p.dataset.signal)")
    assert drawn == ["membership", "split", "kl", "entropy"]
    assert page.run("document.querySelectorAll('#signals .chance').length") == 1
    turnover = figure_data.turnover(history)
    bars = [
        page.run(f"document.querySelectorAll('#signals svg:is([aria-label^=Turnover]) .{way}').length")
        for way in ("up", "down")
    ]
    assert bars == [np.count_nonzero(turnover["gained"]), np.count_nonzero(turnover["lost"])]
    assert sum(turnover["gained"]) > 2
    emerged = np.unique([head[0] for head in np.argwhere(np.isin(history.state, (4, 6)).any(axis=0))])
    assert page.run("document.querySelectorAll('#signals svg:is([aria-label^=Layers]) .up').length") == len(emerged)
    assert page.problems == []


def test_comparison_of_runs(grpo: RunFolder, sft: RunFolder, visit: Visit, tmp_path: Path):
    page = visit(write_report([grpo, sft], tmp_path), "family=addition")
    histories = [HeadHistory.from_run(run, "addition") for run in (grpo, sft)]
    joined = [
        {tuple(h) for h, g in zip(r["heads"], r["group"], strict=True) if g == "joined"}
        for r in map(figure_data.life_raster, histories)
    ]
    lines = texts(page, "#comparison .facts p")
    for line, heads in zip(lines, [joined[0] & joined[1], joined[0] - joined[1], joined[1] - joined[0]], strict=False):
        assert f"({len(heads)}): " in line
        assert {f"L{a}.H{b}" for a, b in heads} == set(line.split(": ")[1].split(", ")) - {"none"}
    assert page.run("document.querySelectorAll('.difference-map .outline').length") == len(joined[0] | joined[1])
    gain = page.run("document.querySelectorAll('.difference-map .difference.f-gain').length")
    difference = np.round(histories[1].share[-1], 4) - np.round(histories[0].share[-1], 4)
    assert gain == (difference > 5e-5).sum() > 0
    assert page.problems == []


def test_choice_of_two_runs_to_subtract(grpo: RunFolder, sft: RunFolder, visit: Visit, tmp_path: Path):
    page = visit(write_report([grpo, sft, grpo], tmp_path))
    title = "document.querySelector('.difference-map .strip-title').textContent"
    assert page.run(title).startswith("Difference of share, B − A")
    page.run(
        "(() => { const s = document.querySelectorAll('#comparison select')[1]; s.value = 2;"
        "s.dispatchEvent(new Event('change')); })()"
    )
    page.settle()
    assert page.run(title).startswith("Difference of share, C − A")
    assert page.run("document.querySelectorAll('.difference-map .difference').length") == 0  # the same run
    assert page.problems == []


def test_hostile_names_stay_text(visit: Visit, tmp_path: Path):
    run = write_synthetic_run(tmp_path / "headwatch", families=(HOSTILE,), steps=range(0, 31, 10))
    run.update_manifest(name=HOSTILE, status=HOSTILE, trainer=HOSTILE, settings={HOSTILE: HOSTILE, "metric": HOSTILE})
    run.update_manifest(model={**run.manifest["model"], "name": HOSTILE})
    page = visit(write_report([run, run], tmp_path), "head=L0.H0")
    assert page.run("document.documentElement.dataset.owned") is None
    assert page.run("document.images.length") == 0
    assert page.run("document.title").endswith(HOSTILE)
    assert HOSTILE in page.run("document.getElementById('head-about').textContent")
    assert texts(page, ".run-name span:nth-child(2)") == [HOSTILE] * 2
    assert texts(page, ".summary summary b")[0] == HOSTILE
    assert page.problems == []


@pytest.mark.slow
def test_size_of_a_large_report(visit: Visit, tmp_path: Path):
    run = write_synthetic_run(tmp_path / "headwatch", n_layers=28, n_heads=12, steps=range(0, 4901, 100))
    path = write_report(run)
    assert path.stat().st_size < 1_000_000
    page = visit(path, "head=L11.H10")
    assert page.run("document.querySelectorAll('#head-body svg').length") == 3
    assert page.run("document.querySelectorAll('#where .cell').length") == 2 * 336
    assert page.problems == []


def test_without_edges_or_signal(visit: Visit, tmp_path: Path):
    page = visit(write_report(write_plain_run(tmp_path / "a", [0, 10])), "head=L1.H1")
    assert "scored by heads only, without edges" in page.run("document.getElementById('head-body').textContent")
    no_signal = visit(write_report(write_plain_run(tmp_path / "b", [0, 10], gap=0.0)), "head=L1.H1")
    assert texts(no_signal, ".family-status") == ["insufficient signal, no result"]
    assert page.problems == no_signal.problems == []


@pytest.mark.filterwarnings("ignore:.*cut short")
def test_run_in_progress(visit: Visit, tmp_path: Path):
    run = write_plain_run(tmp_path, [0])
    (run.path / "training.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew', encoding="utf-8")
    page = visit(write_report(run))
    assert page.run("!!document.querySelector('#course path[data-series=reward]')")
    assert "no correlation over 0 probes: 3 are needed." in page.run("document.querySelector('#course').textContent")
    assert page.problems == []


def test_evidence_of_an_event(grpo: RunFolder, visit: Visit, tmp_path: Path):
    """Interval, raw score and status, set in the page's data."""
    data = run_data(grpo)
    events = data["families"]["addition"]["rules"]["evidence"]["events"]
    more = {"lower": 0.101, "upper": 0.139, "raw_before": -0.01, "raw_now": -0.7, "raw_p": 0.002, "status": "pending"}
    more |= {"patched_before": 0.02, "patched_now": -0.01, "patched_p": 0.3, "patching": "contradicts"}
    row = events["rows"][0]
    for name, value in more.items():
        row[events["columns"].index(name)] = value
    path = tmp_path / "page.html"
    path.write_text(render([data]), encoding="utf-8")
    page = visit(path, f"head=L{row[1]}.H{row[2]}")
    line = texts(page, "#head-body .plain-list li")[0]
    assert "(95 %: +10 % to +14 %)" in line
    assert "raw score −0.01 → −0.7 (p 0.002)" in line
    assert "not confirmed yet" in line
    assert "share by exact patching 2.0 % → −1.0 % (p 0.3), which contradicts the event" in line
    assert "(not confirmed yet) (contradicted by exact patching)" in texts(page, "#events .event .kind")[0]
    assert page.problems == []


@pytest.mark.parametrize("detectable", [True, False])
def test_detection_power_of_a_head(grpo: RunFolder, visit: Visit, tmp_path: Path, detectable: bool):
    history = HeadHistory.from_run(grpo, "addition")
    layer, head = (int(i) for i in np.argwhere(history.detectable[-1] == detectable)[0])
    page = visit(write_report(grpo, tmp_path), f"family=addition&head=L{layer}.H{head}")
    (line,) = texts(page, "#head-body .detectable")
    expected = f"the loss of this head now would {'' if detectable else 'not '}be detected"
    assert line.startswith(f"Detection power: {expected}")
    assert page.problems == []


def test_change_table_of_a_head(grpo: RunFolder, visit: Visit, tmp_path: Path):
    history = HeadHistory.from_run(grpo, "addition")
    layer, head = (int(i) for i in np.argwhere(history.state[-1] == 4)[0])
    page = visit(write_report(grpo, tmp_path), f"family=addition&head=L{layer}.H{head}")
    assert texts(page, "#head-body .changes tbody th") == [
        "Share of the metric gap",
        "Raw score",
        "Fraction of all |share|",
    ]
    for of, cells in zip(("share", "raw", "importance"), page.run(CELLS), strict=True):
        change = history.change(of)
        unit = 1.0 if of == "raw" else 100.0
        low, high = (unit * side[-1, layer, head] for side in change.interval())
        shown = [float(text.replace("−", "-").replace("%", "")) for text in (cells[0], *cells[1].split(" to "))]
        tolerance = 0.01 * abs(unit * change.difference[-1, layer, head]) + 0.03 * (high - low)
        np.testing.assert_allclose(shown, [unit * change.difference[-1, layer, head], low, high], atol=tolerance)
        for text, value in zip(cells[2:], (change.p_value, change.q_value), strict=True):
            assert float(text.replace("−", "-")) == pytest.approx(value[-1, layer, head], rel=0.06)
    assert page.problems == []


CELLS = (
    "[...document.querySelectorAll('#head-body .changes tbody tr')]"
    ".map((r) => [...r.querySelectorAll('td')].map((c) => c.textContent))"
)


def test_intervals_of_effect_and_importance(grpo: RunFolder, visit: Visit, tmp_path: Path):
    circuit = HeadHistory.from_run(grpo, "addition", "circuit")
    low, high = circuit.effect_interval()
    unsure = (np.round(low, 2) <= 0) & (np.round(high, 2) >= 0)
    assert 0 < unsure.sum() < unsure.size
    layer, head = (int(i) for i in np.argwhere((circuit.importance > 0).all(axis=0))[0])
    page = visit(write_report(grpo, tmp_path), f"family=addition&rule=circuit&head=L{layer}.H{head}")
    assert page.run("document.querySelectorAll('#where .effect.unsure').length") == unsure.sum()
    assert page.run("document.querySelectorAll('#where .effect').length") == unsure.size
    assert page.run("document.querySelectorAll('#head-body .head-importance path.interval').length") == 1
    about = page.run("document.querySelector('#head-body .facts').textContent")
    assert "effect " in about
    assert "(95\u00a0%: " in about
    assert page.problems == []


def test_no_intervals_without_resamples(grpo: RunFolder, visit: Visit, tmp_path: Path):
    run = grpo.copy_to(tmp_path / "headwatch")
    for step in run.steps:
        run.write_scores(step, replace(run.read_scores(step), importance_draws=None))
    page = visit(write_report(run), "family=addition&rule=circuit&head=L0.H0")
    assert HeadHistory.from_run(run, "addition", "circuit").effect_interval() is None
    assert page.run("document.querySelectorAll('#where .effect.unsure, .head-importance path.interval').length") == 0
    assert page.run("getComputedStyle(document.querySelector('.legend span:has(.with-interval)')).display") == "none"
    assert page.problems == []


def test_persistence_in_all_and_by_cohort(grpo: RunFolder, visit: Visit, tmp_path: Path):
    history = HeadHistory.from_run(grpo, "addition")
    path = write_report(grpo, tmp_path)
    for probe in (len(history.steps) - 1, 5):
        newly = np.isin(history.state[: probe + 1], (4, 6))
        ever, now = newly.any(axis=0), newly[-1]
        page = visit(path, f"family=addition&rule=evidence&step={history.steps[probe]}")
        line = texts(page, "#course .persistence p")[0]
        assert line.startswith(f"Persistence: {now.sum()} of {ever.sum()} heads that ever emerged ")
        cohorts = texts(page, "#course .persistence li")
        first = np.argmax(newly, axis=0)
        for item, index in zip(cohorts, np.unique(first[ever]), strict=True):
            born = ever & (first == index)
            assert item.startswith(f"since step {history.steps[index]}: {(born & now).sum()} of {born.sum()} (")
    assert page.problems == []
