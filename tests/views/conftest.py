"""Runs to draw, and a real browser to draw them in."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from page_dom import Dom
from synthetic import write_synthetic_run

from headwatch.run_folder import RunFolder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dom]:
    """browse(page, "rule=circuit") opens a page in Chromium and returns the DOM that its script made."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"drawing needs a browser on PATH: one of {', '.join(BROWSERS)}")
    profile = tmp_path_factory.mktemp("profile")
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "extensions", "default-apps"]
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--window-size=1400,2000", f"--user-data-dir={profile}"]

    def open_page(page: Path, chosen: str = "") -> Dom:
        command = [
            browser,
            *flags,
            "--virtual-time-budget=2000",
            *(f"--disable-{name}" for name in quiet),
            "--dump-dom",
            f"{page.as_uri()}#{chosen}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-2000:]
        return Dom(done.stdout)

    return open_page


@pytest.fixture(scope="session")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_synthetic_run(tmp_path_factory.mktemp("grpo") / "headwatch", kind="grpo")


@pytest.fixture(scope="session")
def sft(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_synthetic_run(tmp_path_factory.mktemp("sft") / "headwatch", kind="sft", families=("addition",))
