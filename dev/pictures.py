"""The pictures of docs/images that show a report and W&B's panels, taken by Chromium of a folder of `headwatch demo`.

    PYTHONPATH=tests python dev/pictures.py headwatch-demo docs/images

The pictures `report-before-*` show an earlier design and stay.
"""

import argparse
import shutil
import tempfile
from io import BytesIO
from pathlib import Path

import wandb_picture
from helpers.browser import Browser
from PIL import Image

from headwatch import RunFolder
from headwatch.record.find_runs import find_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 768, 1360)
COLOURS = 256  # of the palette; with fewer, thin coloured lines turn grey


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    program = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory() as scratch:
        browser = Browser(program, Path(scratch) / "profile")
        report = (arguments.demo / "report.html").resolve().as_uri()
        for width in WIDTHS:
            take(browser, report, arguments.out / f"report-after-{width}.png", width, 900)
        take(browser, report, arguments.out / "demo-report.png", 1360, 1280)
        run = find_runs(arguments.demo)[-1]
        head = changed_head(run)
        take(browser, f"{report}#head={head}", arguments.out / "report-head.png", 1360, 900)
        panels = Path(scratch) / "wandb.html"
        panels.write_text(wandb_picture.page(run), encoding="utf-8")
        take(browser, panels.as_uri(), arguments.out / "wandb-panels.png", 3 * wandb_picture.WIDTH + 50, 960)
        browser.close()


def changed_head(run: RunFolder) -> str:
    """The head with the largest change of share among the events of the run by the evidence rule."""
    events = [event for event in run.events() if event.rule == "evidence" and event.share_now is not None]
    changed = max(events, key=lambda event: abs((event.share_now or 0.0) - (event.share_before or 0.0)))
    return f"L{changed.layer}.H{changed.head}"


def take(browser: Browser, address: str, out: Path, width: int, height: int) -> None:
    """One picture, with a palette."""
    page = browser.open(address, width=width, height=height)
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE).save(out, optimize=True)
    page.close()
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
