"""The part "After training" of the page: circuits, heads off, benchmarks, roles."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.after_results import keep_results
from helpers.browser import Page
from helpers.page_dom import Dom
from helpers.synthetic_runs import write_synthetic_run
from test_page_layout import OUTSIDE, WIDTHS, open_all, overlapping

from headwatch.record.run_folder import RunFolder
from headwatch.report.after_data import after_data
from headwatch.report.heads_off import verdict
from headwatch.report.html import write_report

Visit = Callable[..., Page]
# Tables that their container neither holds nor scrolls.
CLIPPED = """[...document.querySelectorAll('#after table')].filter((t) => t.checkVisibility()
  && t.getBoundingClientRect().right > t.parentElement.getBoundingClientRect().right + 1
  && getComputedStyle(t.parentElement).overflowX !== 'auto').length"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("large") / "headwatch"
    found = write_synthetic_run(folder, n_layers=28, n_heads=12, n_pairs=16, steps=(0, 600, 1200))
    keep_results(found, found.families)
    return found


@pytest.fixture(scope="module")
def page_file(run: RunFolder) -> Path:
    return write_report(run)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_of_a_head_is_clipped(page_file: Path, visit: Visit, run: RunFolder, width: int) -> None:
    event = run.events()[0]
    page = visit(page_file, f"family={run.families[0]}&head=L{event.layer}.H{event.head}", width=width, height=900)
    parts = "[...document.querySelectorAll('#head-body .scroll:has(table)')]"
    assert page.run(f"{parts}.length") == 1  # the changes since the base
    assert page.run(f"{parts}.filter((box) => box.scrollWidth > box.clientWidth + 1).length") == 0
    assert page.problems == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_and_the_first_chart_stays_in_view(page_file: Path, visit: Visit, width: int) -> None:
    page = visit(page_file, width=width, height=900)
    assert page.run("document.querySelector('main svg.chart').getBoundingClientRect().top") < 700
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.getElementById('after').getBoundingClientRect().top") > 700
    open_all(page)
    assert overlapping(page) == []
    assert page.run(OUTSIDE) == []
    assert page.run(CLIPPED) == 0
    assert page.problems == []


def test_circuits_are_drawn_with_their_edges_and_curves(page_file: Path, visit: Visit) -> None:
    page = visit(page_file, "family=recall", width=1360)
    assert page.run("document.querySelectorAll('#circuits svg.circuit').length") == 2  # the base's is folded
    assert "Insufficient signal: in base the metric" in page.run("document.getElementById('circuits').innerText")
    assert page.run("document.querySelector('#circuits svg.circuit').querySelectorAll('path').length") == 150
    boxes = page.run(
        "[...document.querySelector('#circuits svg.circuit').querySelectorAll('rect')].map((r) => "
        "[+r.getAttribute('x'), +r.getAttribute('y'), +r.getAttribute('width'), +r.getAttribute('height')])"
    )
    for i, (x, y, width, height) in enumerate(boxes):
        assert not any(abs(x - a) < width and abs(y - b) < height for a, b, *_ in boxes[i + 1 :]), "nodes overlap"
    curves = "document.querySelectorAll('#circuits .faithfulness path.line.{}').length"
    assert [page.run(curves.format(name)) for name in ("s-base", "s-new", "random")] == [1, 1, 4]
    label = page.run("document.querySelector('.head-node text').textContent")
    page.run("document.querySelector('.head-node').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert page.run("document.getElementById('head-page').open")
    layer, head = label.removeprefix("L").split(".H")
    assert page.run("document.getElementById('head-title').textContent") == f"Head {head} of layer {layer}"
    assert page.problems == []


def test_a_drawing_that_does_not_fit_is_folded_on_a_phone(page_file: Path, visit: Visit) -> None:
    shown = "[...document.querySelectorAll('#circuits svg.circuit')].map((svg) => svg.checkVisibility())"
    assert visit(page_file, width=1360).run(shown) == [True, False]  # the trained model's, the base's
    page = visit(page_file, width=390)
    assert page.run(shown) == [False, False]
    page.click("#circuits details.more-text > summary")
    assert page.run(shown) == [True, False]


def test_roles_are_sorted_and_shown_on_the_page_of_a_head(page_file: Path, visit: Visit, run: RunFolder) -> None:
    page = visit(page_file, width=1360)
    entropy = (
        "[...document.querySelectorAll('#roles tbody tr')].map((r) => +r.children[1].textContent.replace('−', '-'))"
    )
    names = page.run("[...document.querySelectorAll('#roles tbody th button')].map((b) => b.textContent)")
    with_events = {f"L{event.layer}.H{event.head}" for event in run.events() if event.rule == "evidence"}
    assert len(names) == 10 + len(with_events - set(names[:10]))
    assert with_events <= set(names)
    page.click("#roles thead th:nth-child(2) button")
    assert page.run(entropy) == sorted(page.run(entropy), reverse=True)
    page.click("#roles thead th:nth-child(2) button")
    assert page.run(entropy) == sorted(page.run(entropy))
    page.click("#roles .more")
    assert len(page.run(entropy)) == 28 * 12
    event = run.events()[0]
    other = visit(page_file, f"family={run.families[0]}&head=L{event.layer}.H{event.head}", width=1360)
    texts = other.run("document.querySelector('#head-body svg.pattern').textContent")
    assert texts.count("Compute") == 2
    assert other.run("document.querySelectorAll('#head-body svg.pattern rect').length") == 7 * 8 / 2
    assert "Entropy\u00a0" in other.run("document.getElementById('head-body').textContent")
    assert other.problems == page.problems == []


def test_heads_off_and_benchmarks(page_file: Path, browse: Callable[..., Dom], visit: Visit) -> None:
    page = visit(page_file, width=1360)
    assert page.run("document.querySelectorAll('#ablation .arms circle').length") == 4  # none, the heads, two sets
    text = page.run("document.getElementById('ablation').innerText")
    assert "50.0 [40.0, 60.0]" in text
    assert "nothing off" in text
    assert "emerged heads off: " in text
    assert "rank p 0.67. They matter no more than random heads." in text
    assert "gsm8k" in page.run("document.getElementById('evaluation').innerText")


def test_without_results_the_commands_are_named(visit: Visit, tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "headwatch", n_pairs=16, steps=(0, 20))
    page = visit(write_report(run))
    assert page.run("[...document.querySelectorAll('#after > section')].every((part) => part.hidden)")
    commands = page.run("[...document.querySelectorAll('#next code')].map((code) => code.textContent)")
    assert commands == [*(f"headwatch {name}" for name in ("circuit", "ablate", "evaluate", "roles")), "--run FOLDER"]
    assert page.problems == []


@pytest.mark.parametrize(
    ("change", "against", "rank_p", "expected"),
    [
        (-0.30, -0.20, 0.05, "They matter more than random heads: no random set costs as much (rank p 0.05)."),
        (-0.30, -0.20, 0.15, "They matter more than random heads on average, but 2 of the 19 random sets cost as much"),
        (-0.30, -0.20, 0.10, "but 1 of the 19 random sets costs as much or more."),
        (-0.30, 0.00, 0.50, "They matter no more than random heads."),
        (-0.30, 0.20, 1.00, "They matter less than random heads, which cost more on average."),
        (-0.05, -0.20, 0.05, "On this task the model does not measurably need these heads."),
    ],
)
def test_the_verdict_follows_from_the_numbers(change: float, against: float, rank_p: float, expected: str) -> None:
    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    other = {"sets": 19, "rank_p": rank_p, "difference": interval(against)}
    assert expected in verdict(interval(change), other)
    assert verdict(interval(change), other, 1.3) == ""  # no head is off


def test_too_few_random_sets_are_said_to_be() -> None:
    few = {"sets": 5, "rank_p": 1 / 6, "difference": {"value": -0.2, "low": -0.3, "high": -0.1}}
    assert "too few to claim it" in verdict({"value": -0.3, "low": -0.4, "high": -0.2}, few)


def test_a_large_model_keeps_its_heads_with_the_largest_write(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwatch.report.after_data.MAX_ROLE_VALUES", 80)
    (roles,) = after_data(run)["roles"]
    assert (len(roles["rows"]), roles["omitted"]) == (10, 28 * 12 - 10)
    place = 1 + roles["columns"].index("write")
    assert [row[place] for row in roles["rows"]] == sorted((row[place] for row in roles["rows"]), reverse=True)
