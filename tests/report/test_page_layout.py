"""Layout of the page in a browser: nothing overlaps, nothing is clipped, and the first chart is on the first screen."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.browser import Page
from helpers.plain_run import write_plain_run
from helpers.synthetic_runs import write_synthetic_run

from headwatch.record.run_folder import RunFolder
from headwatch.report.html import write_report

Visit = Callable[..., Page]
WIDTHS = (390, 768, 1360)

# Rectangles of all visible texts: of SVG texts (not the rotated ones, whose boxes are larger than their ink), and of
# each line of the text nodes.
BOXES = """(() => {
  const boxes = [], skipped = 'svg, script, style, noscript, dialog, .skip, #tip, .table, .scroll';
  const add = (b, text) => { if (b.width > 1 && b.height > 1) boxes.push([b.left, b.top, b.right, b.bottom, text]); };
  const texts = [...document.querySelectorAll('svg.chart text:not([transform])')];
  texts.filter((t) => t.checkVisibility()).forEach((t) => add(t.getBoundingClientRect(), t.textContent));
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
  while (walk.nextNode()) {
    const node = walk.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest(skipped) || !parent.checkVisibility()) continue;
    range.selectNodeContents(node);
    for (const b of range.getClientRects()) add(b, node.data.trim());
  }
  return boxes;
})()"""
OUTSIDE = """[...document.querySelectorAll('svg.chart text:not([transform])')].filter((t) => {
  const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
  return t.checkVisibility() && (a.left < b.left - 1 || a.right > b.right + 1);
}).map((t) => t.textContent)"""
CLIPPED = """[...document.querySelectorAll('table')].filter((t) => t.checkVisibility()
  && t.getBoundingClientRect().right > t.parentElement.getBoundingClientRect().right + 1).length"""


def open_all(page: Page) -> None:
    """Unfold every section; charts that become visible are drawn again."""
    page.run("document.querySelectorAll('main details:not(.help)').forEach((d) => { d.open = true; })")
    page.settle()


def overlapping(page: Page) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than two pixels in both directions."""
    boxes = sorted(page.run(BOXES), key=lambda box: box[1])
    found = []
    for i, (left, top, right, bottom, text) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom, other in boxes[i + 1 :]:
            if other_top > bottom - 2:
                break
            across = min(right, other_right) - max(left, other_left)
            if across > 2 and min(bottom, other_bottom) - max(top, other_top) > 2:
                found.append((text, other))
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, grpo: RunFolder, sft: RunFolder) -> dict[str, Path]:
    """Reports of one run, of two of different length, of a large model with a family without signal."""
    folder = tmp_path_factory.mktemp("pages")
    short = write_plain_run(folder / "short", [0, 10, 20, 40], layers=8, heads=6)
    one = {"n_pairs": 16, "families": ("addition",)}
    large = write_synthetic_run(folder / "large" / "headwatch", n_layers=28, n_heads=12, steps=(0, 600, 1200), **one)
    return {
        "one": write_report(grpo, folder / "one.html"),
        "two": write_report([short, grpo], folder / "two.html"),
        "large": write_report(large, folder / "large.html"),
        "quiet": write_report(write_plain_run(folder / "quiet", [0, 10, 20]), folder / "quiet.html"),
        "no signal": write_report(write_plain_run(folder / "none", [0, 10], gap=0.0), folder / "none.html"),
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["one", "two", "large", "no signal"])
def test_no_text_overlaps_and_the_first_chart_is_in_view(
    pages: dict[str, Path], visit: Visit, which: str, width: int
) -> None:
    page = visit(pages[which], width=width, height=900)
    top = page.run("document.querySelector('main svg.chart').getBoundingClientRect().top")
    assert top < 700  # and 200 pixels of it are above 900
    assert page.run("document.documentElement.scrollWidth") <= width
    open_all(page)
    assert overlapping(page) == []
    assert page.run(OUTSIDE) == []
    assert page.run(CLIPPED) == 0
    counts = page.run("[...document.querySelectorAll('#state-counts li')].map((e) => e.getBoundingClientRect().right)")
    assert all(right <= width for right in counts)
    assert page.run("document.getElementById('now').checkVisibility()")
    assert page.problems == []


def test_overlaps_are_found(pages: dict[str, Path], visit: Visit) -> None:
    """The check itself: a text moved onto another one is reported."""
    page = visit(pages["one"], width=1360)
    page.run(
        "(() => { const t = document.querySelectorAll('#course svg text'); t[1].setAttribute('y', "
        "t[0].getAttribute('y')); t[1].setAttribute('x', t[0].getAttribute('x')); })()"
    )
    assert overlapping(page)


def test_the_page_opens_on_the_family_with_most_to_report(visit: Visit, tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "headwatch", n_pairs=16, steps=(0, 20, 40))
    pairs = run.pairs_of("addition")
    for step in run.steps:  # the metric of the first family does not differ between the prompts
        scores = run.read_scores(step)
        scores.metric_corrupted[pairs] = scores.metric_clean[pairs]
        run.write_scores(step, scores)
    page = visit(write_report(run))
    assert page.run("document.querySelector('#family input:checked').value") == "recall"
    lines = page.run("[...document.querySelectorAll('.summary > details > summary')].map((s) => s.innerText)")
    assert lines[0].startswith("addition")
    assert "insufficient signal" in lines[0]
    assert "emerged" in lines[1]
    assert not page.run("[...document.querySelectorAll('.summary details')].some((d) => d.open)")
    other = visit(write_report(run), "family=addition")
    assert other.run("document.getElementById('where').hidden && document.getElementById('lives').hidden")
    assert page.problems == other.problems == []


def test_each_run_has_its_own_step_axis_unless_one_is_chosen(pages: dict[str, Path], visit: Visit) -> None:
    page = visit(pages["two"], width=1360)
    labels = "[...document.querySelectorAll('#course svg')].map((s) => s.textContent.includes('100'))"
    assert page.run(labels) == [False, True]
    page.click("#axis")
    assert page.run(labels) == [True, True]
    assert page.problems == []


def test_without_newly_active_heads_their_chart_is_low(pages: dict[str, Path], visit: Visit) -> None:
    tops = "[...document.querySelectorAll('#course .strip-title')].map((t) => +t.getAttribute('y'))"
    first, second, *_ = visit(pages["one"], width=1360).run(tops)
    assert second - first > 200
    quiet = visit(pages["quiet"], width=1360)
    first, second, *_ = quiet.run(tops)
    assert second - first < 130
    assert "0 newly active" in quiet.run("document.getElementById('course').textContent")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("7+8=", "7+3=", [2, 1]),
        ("7+8=", "7+8=", [4, 0]),
        ("aa", "aaa", [2, 0]),
        ("D = 8; A", "D = 8; N", [7, 0]),
        ("", "x", [0, 0]),
    ],
)
def test_the_difference_of_a_pair(
    pages: dict[str, Path], visit: Visit, one: str, other: str, expected: list[int]
) -> None:
    assert visit(pages["one"]).run(f"differing({one!r}, {other!r})") == expected


def test_probe_pair_is_shown_with_its_answers(grpo: RunFolder, visit: Visit, tmp_path: Path) -> None:
    run = grpo.copy_to(tmp_path / "headwatch")
    example = {"clean": "1+1=2\n2+3=", "corrupted": "1+1=2\n2+4=", "clean_answer": "5", "corrupted_answer": "6"}
    run.update_manifest(probes={**run.manifest["probes"], "examples": {"addition": example, "recall": None}})
    page = visit(write_report(run), "family=addition")
    lines = page.run("[...document.querySelectorAll('#pair p')].map((p) => p.innerText)")
    assert lines[0] == "One of 32 probe pairs of addition with the token that the metric reads"
    assert lines[1].removeprefix("clean").strip().split(" → ") == ["1+1=2⏎2+3=", "5"]
    assert lines[2].removeprefix("corrupted").strip().split(" → ") == ["1+1=2⏎2+4=", "6"]
    assert page.run("[...document.querySelectorAll('#pair mark')].map((m) => m.textContent)") == ["3", "4"]
    assert visit(write_report(run), "family=recall").run("document.getElementById('pair').hidden")
    assert page.problems == []


def test_help_of_each_chart_is_two_sentences(pages: dict[str, Path], visit: Visit) -> None:
    page = visit(pages["two"], width=390)
    open_all(page)
    charts = page.run("[...document.querySelectorAll('main svg.chart')].filter((c) => c.checkVisibility()).length")
    without = page.run(
        "[...document.querySelectorAll('main svg.chart:not(.share)')].filter((c) => c.checkVisibility() && "
        "!c.closest('.helped, section').querySelector('.help') && !c.closest('section').querySelector('.help')).length"
    )
    assert charts > 10
    assert without == 0
    assert not page.run("document.querySelector('#course .help p').checkVisibility()")
    page.click("#course .help summary")
    assert page.run("document.querySelector('#course .help p').checkVisibility()")
    page.run("document.querySelectorAll('.help').forEach((h) => { h.open = true; })")
    assert overlapping(page) == []


def test_a_spell_that_begins_at_the_last_probe_is_visible(grpo: RunFolder, visit: Visit, tmp_path: Path) -> None:
    page = visit(write_report(grpo, tmp_path), "family=addition", width=390)
    widths = page.run("[...document.querySelectorAll('#lives .bar')].map((b) => b.getBoundingClientRect().width)")
    assert min(widths) >= 8
