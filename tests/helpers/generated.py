"""Tables in the documentation that a benchmark writes, between two comments."""

from pathlib import Path


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- generated: {name} -->", f"<!-- end: {name} -->"


def replace_block(page: Path, name: str, text: str) -> None:
    """Write `text` between the marks of this name."""
    start, end = _marks(name)
    before, rest = page.read_text("utf-8").split(start)
    page.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}", "utf-8")


def block(page: Path, name: str) -> str:
    """The text between the marks of this name."""
    start, end = _marks(name)
    return page.read_text("utf-8").split(start)[1].split(end)[0]
