"""Runs, and a browser that draws their reports."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.browser import Browser, Page
from helpers.page_dom import Dom
from helpers.synthetic_runs import write_synthetic_run

from headwatch.record.run_folder import RunFolder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests; each test opens its own pages."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser on PATH: one of {', '.join(BROWSERS)}")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """visit(path, "rule=circuit", width=...) opens a page in Chromium until the end of the test."""
    opened: list[Page] = []

    def open_page(path: Path, chosen: str = "", **how: object) -> Page:
        opened.append(browser.open(f"{path.as_uri()}#{chosen}", **how))  # type: ignore[arg-type]
        return opened[-1]

    yield open_page
    for page in opened:
        page.close()


@pytest.fixture
def browse(visit: Callable[..., Page]) -> Callable[..., Dom]:
    """browse(path, "rule=circuit") opens a page in Chromium and returns its DOM."""
    return lambda path, chosen="": Dom(visit(path, chosen, height=2000).dom())


@pytest.fixture(scope="session")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_synthetic_run(tmp_path_factory.mktemp("grpo") / "headwatch", kind="grpo")


@pytest.fixture(scope="session")
def sft(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_synthetic_run(tmp_path_factory.mktemp("sft") / "headwatch", kind="sft", families=("addition",))
