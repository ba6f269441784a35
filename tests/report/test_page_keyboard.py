"""Keyboard, mouse, accessibility and print of the page, in a browser; its console stays empty."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import Page

from headwatch.lives.history import HeadHistory
from headwatch.record.run_folder import RunFolder
from headwatch.report.html import write_report

Visit = Callable[..., Page]
NOW = "document.getElementById('now-text').textContent"
OPEN = "document.getElementById('head-page').open"
FOCUS = "document.activeElement.id || document.activeElement.getAttribute('class') || document.activeElement.tagName"


@pytest.fixture(scope="module")
def path(grpo: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(grpo, tmp_path_factory.mktemp("keyboard"))


def outlines(page: Page) -> int:
    return int(page.run("document.querySelectorAll('#where .outline').length"))


def test_slider_keys(path: Path, grpo: RunFolder, visit: Visit):
    page, history = visit(path), HeadHistory.from_run(grpo)
    steps, active = history.steps, history.active.sum(axis=(1, 2))
    page.run("document.getElementById('now').focus()")
    at = len(steps) - 1
    for key, to in [
        ("ArrowLeft", at - 1),
        ("ArrowDown", at - 2),
        ("ArrowRight", at - 1),
        ("ArrowUp", at),
        ("Home", 0),
        ("PageUp", 1),  # a tenth of the range, at least one step
        ("End", at),
        ("PageDown", at - 1),
    ]:
        page.press(key)
        assert page.run(NOW) == f"step {steps[to]} of {steps[-1]}", key
        assert page.run("document.getElementById('now').getAttribute('aria-valuetext')") == page.run(NOW)
        assert outlines(page) == active[to]
    page.run("document.activeElement.blur()")
    page.press(",")
    assert page.run(NOW).startswith(f"step {steps[at - 2]} ")
    page.press(".", ".")
    assert outlines(page) == active[at]
    assert page.problems == []


def test_head_page_keys(path: Path, grpo: RunFolder, visit: Visit):
    page, history = visit(path, "pick=L2.H2"), HeadHistory.from_run(grpo)
    page.run("document.querySelector('#where .map').focus()")
    page.press("ArrowRight", "ArrowUp")
    assert page.run("document.querySelector('.inspector b').textContent") == "L3.H1"
    assert page.run(OPEN) is False
    page.press("Enter")
    assert page.run(OPEN) is True
    assert page.run("location.hash").endswith("head=L3.H1")
    assert page.run(FOCUS) == "head-step"
    page.press("Home")
    assert page.run("document.getElementById('head-step-text').textContent") == "step 0"
    page.press("End", "n")
    following = page.run("document.getElementById('head-about').textContent")
    assert following.split(" ")[0] != "L3.H1"
    page.press("p")
    assert page.run("document.getElementById('head-about').textContent").startswith("L3.H1 ")
    page.press("Tab")
    assert page.run(FOCUS) == "head-previous"
    page.press("Escape")
    assert page.run(OPEN) is False
    assert "pick=L3.H1" in page.run("location.hash")
    assert page.run("document.activeElement.classList.contains('map')")  # focus returns to where it was opened
    assert history.n_layers > 3
    assert page.problems == []


def test_head_page_address_and_back_key(path: Path, grpo: RunFolder, visit: Visit):
    event = HeadHistory.from_run(grpo).events[0]
    name = f"L{event.layer}.H{event.head}"
    page = visit(path, f"head={event.layer}.{event.head}")
    assert page.run(OPEN) is True
    assert page.run("document.getElementById('head-about').textContent").startswith(name + " ")
    page.press("Escape")
    page.run("document.querySelector('#events td button').focus()")
    page.press("Enter")
    assert page.run(OPEN) is True
    page.run("new Promise((done) => { addEventListener('hashchange', () => setTimeout(done, 50)); history.back(); })")
    assert page.run(OPEN) is False
    page.go(f"{path.as_uri()}#head=L99.H0")  # no such head: the page opens without it
    assert page.run(OPEN) is False
    assert page.problems == []


def test_head_page_content(path: Path, grpo: RunFolder, visit: Visit):
    history = HeadHistory.from_run(grpo, "addition")
    event = next(e for e in history.events if e.kind == "emerged")
    head, at = (event.layer, event.head), history.steps.index(event.step)
    page = visit(path, f"family=addition&step={event.step}&head=L{head[0]}.H{head[1]}")
    text = page.run("document.getElementById('head-body').textContent")
    assert f"emerged at step {event.step}" in text
    assert f"→ {100 * history.share[at][head]:.0f} %" in text
    assert "On recall: " in text
    drawn = "[...document.querySelectorAll('#head-body svg')].map((c) => c.querySelectorAll('.interval').length)"
    assert page.run(drawn) == [1, 0, 1]  # of the share and of the importance
    charts = page.run("[...document.querySelectorAll('#head-body svg')].map((c) => c.getAttribute('aria-label'))")
    assert [label.split(" ")[0] for label in charts] == ["Share", "Raw", "Importance"]
    # Names of the edges, from the matrix and the order of names in Anatomy.
    layers, heads = history.n_layers, history.n_heads
    edges = grpo.read_scores(event.step).edges_mean_abs[0]
    targets = [f"L{a}.H{b} ({k})" if b < heads else f"L{a} MLP" for a in range(layers) for b, k in _reads(heads)]
    row = edges[1 + head[0] * (heads + 1) + head[1]]
    strongest = [[*targets, "logits"][i] for i in np.argsort(-row)[:5]]
    shown = page.run(
        "[...document.querySelectorAll('.edges')].map((t) => [...t.querySelectorAll('th')].map((c) => c.textContent))"
    )
    assert shown[1] == strongest
    sources = ["input"] + [f"L{a}.H{b}" if b < heads else f"L{a} MLP" for a in range(layers) for b in range(heads + 1)]
    first = head[0] * (3 * heads + 1) + 3 * head[1]
    flat = edges[:, first : first + 3]
    places = [divmod(int(i), 3) for i in np.argsort(-flat, axis=None)[:5]]
    assert shown[0] == [f"{sources[s]} → {'qkv'[k]}" for s, k in places if flat[s, k] > 0]
    assert page.problems == []


def _reads(heads: int) -> list[tuple[int, str]]:
    return [(head, kind) for head in range(heads) for kind in "qkv"] + [(heads, "")]


def test_events_sort_and_filter_and_theme_by_mouse(path: Path, grpo: RunFolder, visit: Visit):
    page, history = visit(path), HeadHistory.from_run(grpo)
    page.click("#events th:last-child button")
    page.click("#events th:last-child button")
    q = page.run("[...document.querySelectorAll('tr.event td:last-child')].map((c) => c.textContent)")
    values = [float(text.replace("−", "-")) for text in q]
    assert values == sorted(values, reverse=True)
    assert page.run("document.querySelector('#events th[aria-sort=descending]').textContent").startswith("q value")
    pruned = sum(event.kind == "pruned" for event in history.events)
    assert pruned > 0
    page.run(
        "[...document.querySelectorAll('#events .filters button')].find((b) => /^pruned/.test(b.textContent)).click()"
    )
    assert page.run("document.querySelectorAll('tr.event').length") == len(history.events) - pruned
    page.click("#theme")
    assert page.run("document.documentElement.dataset.theme") == "dark"
    assert page.problems == []


# --- accessibility ----------------------------------------------------------------------------------------------------


def test_tab_reaches_every_control(path: Path, visit: Visit):
    page = visit(path)
    expected = page.run(
        "[...document.querySelectorAll('a[href], button, input, select, summary, [tabindex=\"0\"]')]"
        ".filter((e) => e.checkVisibility({visibilityProperty: true}) && !e.closest('dialog')"
        " && !(e.type === 'radio' && !e.checked)).length"
    )
    focused: list[str] = []
    for _ in range(expected):
        page.press("Tab")
        focus = page.run(
            "(() => { const e = document.activeElement, s = getComputedStyle(e.type === 'radio' ? e.parentNode : e);"
            "const ring = s.outlineStyle !== 'none' && s.outlineWidth !== '0px' || e.classList.contains('skip');"
            "return [[...document.querySelectorAll('*')].indexOf(e), ring]; })()"
        )
        assert focus[1], page.run("document.activeElement.outerHTML.slice(0, 200)")
        focused.append(focus[0])
    assert len(set(focused)) == expected > 15


def test_roles_and_names(path: Path, visit: Visit):
    page = visit(path, "head=L0.H0")
    unnamed = page.run(
        """[...document.querySelectorAll('svg.chart, button, input, select, dialog, nav, section')].filter((e) => !(
            e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || (e.labels && e.labels.length)
            || (e.matches('button') && e.textContent.trim()) || (e.matches('section') && e.querySelector('h2'))
        )).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []
    roles = page.run("[...new Set([...document.querySelectorAll('svg.chart')].map((c) => c.getAttribute('role')))]")
    assert set(roles) == {"img", "application"}
    ids = page.run("[...document.querySelectorAll('[id]')].map((e) => e.id).filter((id) => id !== 'hatch')")
    assert len(ids) == len(set(ids))
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("[...document.querySelectorAll('th')].every((c) => c.scope)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast(path: Path, visit: Visit, scheme: str):
    """WCAG: at least 4.5 : 1 for every text colour."""
    page = visit(path, scheme=scheme)
    colours = page.run(
        """(() => {
          const at = (colour) => { const c = document.createElement('canvas').getContext('2d');
            c.fillStyle = colour; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };
          const texts = [...document.querySelectorAll('main *, header *, nav *')].filter((e) => e.checkVisibility()
            && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && !e.closest('.later'));
          const used = new Set(texts.map((e) => getComputedStyle(e)[e.closest('svg.chart') ? 'fill' : 'color']));
          const ground = at(getComputedStyle(document.documentElement).backgroundColor);
          return {ground, used: [...used].map((c) => [c, at(c)])};
        })()"""
    )
    weak = {name: round(_contrast(rgb, colours["ground"]), 2) for name, rgb in colours["used"]}
    assert len(weak) >= 4
    assert {name: ratio for name, ratio in weak.items() if ratio < 4.5} == {}


def _contrast(one: list[int], other: list[int]) -> float:
    """Contrast ratio of two sRGB colours, WCAG 2."""

    def luminance(rgb: list[int]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("width", [1400, 390])
def test_no_overflow_and_no_requests(path: Path, visit: Visit, width: int):
    page = visit(path, width=width)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.requests == [path.as_uri()]
    assert page.problems == []


# --- print ------------------------------------------------------------------------------------------------------------


def test_print_shows_every_section(path: Path, grpo: RunFolder, visit: Visit):
    page = visit(path, "rule=circuit")
    page.run("dispatchEvent(new Event('beforeprint'))")
    page.media("print")
    page.size(718, 1000)  # an A4 sheet less its margins
    shown = page.run(
        """Object.fromEntries([...document.querySelectorAll('main section, main details[id]')].filter((s) => !s.hidden)
          .map((s) => [s.id, s.getBoundingClientRect().height]))"""
    )
    assert set(shown) == {
        "state-counts",
        "course",
        "where",
        "lives",
        "after",
        "signals",
        "checks",
        "events",
        "survival",
        "reading",
        "details",
    }
    assert all(height > 20 for height in shown.values()), shown
    assert page.run("[...document.querySelectorAll('details')].every((d) => d.open)")
    clipped = "[...document.querySelectorAll('svg.chart')].filter((c) => { const b = c.getBoundingClientRect();"
    assert page.run(clipped + " return b.width && (b.right > innerWidth + 1 || b.height > 910); }).length") == 0
    assert page.run("document.querySelectorAll('tr.event').length") == len(
        HeadHistory.from_run(grpo, rule="circuit").events
    )
    assert page.run("getComputedStyle(document.getElementById('controls')).display") == "none"
    assert "family addition (of addition, recall), circuit rule" in page.run(
        "document.getElementById('print-state').innerText"
    )
    page.media("")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert 4 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 16
    assert page.run("document.body.classList.contains('printing')") is False
    assert page.problems == []


def test_print_of_an_open_head_page(path: Path, visit: Visit):
    page = visit(path, "head=L0.H0")
    page.media("print")
    assert page.run("getComputedStyle(document.querySelector('main')).display") == "none"
    assert page.run("document.getElementById('head-body').checkVisibility()")


def test_address_holds_the_choices(path: Path, visit: Visit):
    page = visit(path)
    page.run("document.querySelector('#rule input[value=circuit]').focus()")
    page.run("document.querySelector('#rule input[value=evidence]').focus()")
    page.press("ArrowRight")
    choices = page.run("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
    assert (choices["rule"], choices["family"]) == ("circuit", "addition")
    again = visit(path, page.run("location.hash.slice(1)"))
    assert again.run("document.querySelector('#rule input:checked').value") == "circuit"
    assert again.problems == []
