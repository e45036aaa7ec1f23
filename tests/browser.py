"""Pages in headless Chromium, if it is installed.

python tests/browser.py study/report.html docs/study     # takes the screenshots of the docs
"""

import html
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from matplotlib.image import imread, imsave

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
)
PHONE = 390
"""Width of a phone in pixels; Chromium's own windows are at least 500 wide."""
NO_INITIATOR = "not an origin"
"""Initiator, in Chromium's log, of requests that no page made."""


@dataclass(frozen=True)
class Visit:
    """The result of opening a page."""

    output: str
    """Standard output of Chromium; its content depends on the flags."""
    console: list[str]
    """Console messages of the page, errors included."""
    requests: list[str]
    """URLs that the page requested, its own left out."""


def chromium(page: Path, *flags: str) -> Visit:
    """Open a page with additional flags; skip the test if there is no Chromium.

    Chromium's virtual time now and then stands still on a busy machine: what takes no more than seconds is then tried
    once more.
    """
    try:
        return _visit(page, *flags)
    except subprocess.TimeoutExpired:
        return _visit(page, *flags)


def _visit(page: Path, *flags: str) -> Visit:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; it is needed to open the report in a browser")
    with TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--log-net-log={log}", *flags, page.as_uri()],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        net = json.loads(log.read_text())
    start = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event["params"] for event in net["events"] if event["type"] == start and "params" in event]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(
        done.stdout,
        console,
        [request["url"] for request in requests if request.get("initiator", NO_INITIATOR) != NO_INITIATOR],
    )


def framed(page: Path, width: int, height: int) -> Path:
    """Write a page that embeds another in a frame of given pixels and shows the message that the other posts."""
    outer = page.with_name(f"{page.stem}-{width}.html")
    outer.write_text(
        f"""<!doctype html><body style="margin:0"><iframe src="{html.escape(page.as_uri())}" width="{width}"
        height="{height}" style="border:0;display:block"></iframe><script>
        addEventListener('message', (event) => {{
          const found = Object.assign(document.createElement('pre'), {{ id: 'found', textContent: event.data }});
          document.body.append(found);
        }});</script></body>"""
    )
    return outer


def screenshot(page: Path, picture: Path, width: int = 1200, height: int = 1600, dark: bool = False) -> Path:
    """Take a screenshot of the top of a page, cropped below its last content."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shown = framed(page, width, height) if width < 500 else page
    chromium(shown, scheme, f"--window-size={max(width, 500)},{height}", f"--screenshot={picture}")
    pixels = imread(picture)[:, :width, :3]
    study_figures = (pixels != pixels[-1, 0]).any((1, 2)).nonzero()[0]
    imsave(picture, pixels[: study_figures.max(initial=0) + 20])
    return picture


def single_section(page: Path, result: str, folder: Path) -> Path:
    """Write a copy of the page that shows one result only."""
    style = f"<style>header, section:not(#{result}) {{ display: none }} h2 {{ margin: 0; border: 0 }}</style></head>"
    alone = folder / f"{result}.html"
    alone.write_text(page.read_text().replace("</head>", style))
    return alone


def screenshots(page: Path, folder: Path) -> list[Path]:
    """Take the screenshots of the docs: the top of the report (light, dark, on a phone) and its coloured texts."""
    with TemporaryDirectory() as temporary:
        copy = Path(shutil.copy(page, Path(temporary) / "report.html"))
        return [
            screenshot(copy, folder / "report.png", height=1500),
            screenshot(copy, folder / "report-dark.png", height=1500, dark=True),
            screenshot(copy, folder / "report-phone.png", PHONE, 1500),
            screenshot(single_section(copy, "by_token", copy.parent), folder / "report-tokens.png", height=1700),
        ]


if __name__ == "__main__":
    for taken in screenshots(Path(sys.argv[1]).resolve(), Path(sys.argv[2])):
        print(taken)
