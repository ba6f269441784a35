"""The documentation: relative links resolve, and the README stays short."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("dev/*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
MAX_LINES, MAX_WIDTH = 160, 120


def prose(page: Path) -> str:
    """The text of a page without code blocks and code spans."""
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    )


def anchors(page: Path) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub names them."""
    for heading in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        exists = target.is_relative_to(ROOT) and target.exists()
        assert exists, f"{page.relative_to(ROOT)}: {link} does not exist"
        assert not anchor or anchor in anchors(target), f"{page.relative_to(ROOT)}: {link} has no such heading"


@pytest.mark.parametrize("folder", ["guide", "reference", "evidence"])
def test_index_links_every_page_of(folder: str) -> None:
    linked = set(LINK.findall((ROOT / "docs" / "README.md").read_text("utf-8")))
    assert {f"{folder}/{page.name}" for page in (ROOT / "docs" / folder).glob("*.md")} <= linked


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert [line for line in lines if len(line) > MAX_WIDTH] == []


def numbers_in(cell: str) -> list[str]:
    """The numbers of a table cell, but those in names (`bf16`, Qwen2.5-7B), code, links and parentheses."""
    text = re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|\([^)]*\)", "", cell)
    return re.findall(r"(?<![\w.-])\d[\d,.]*(?![\w-])", text)


def test_numbers_in_a_cell() -> None:
    assert numbers_in(" 100 s, 256 pairs ") == ["100", "256"]
    assert numbers_in(" Qwen2.5-Math-1.5B, bf16 (5), one 80 GB GPU ") == ["80"]


def test_no_cell_of_the_readme_has_two_numbers() -> None:
    rows = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("|")]
    assert rows
    assert [cell for row in rows for cell in row.split("|") if len(numbers_in(cell)) > 1] == []
