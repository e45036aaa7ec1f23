"""Pages in headless Chromium, where there is one.

python tests/browser.py study/report.html docs/study     # takes the pictures that the docs show
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
"""Pixels across; Chromium itself has no window narrower than 500."""
ITS_OWN = "not an origin"
"""By what Chromium's log knows the requests that no page has made."""


@dataclass(frozen=True)
class Visit:
    """What came of opening a page."""

    output: str
    """What flags ask for, from standard output."""
    console: list[str]
    """What the page said, errors and all."""
    requests: list[str]
    """Addresses that the page asked for, itself left out."""


def chromium(page: Path, *flags: str) -> Visit:
    """Open a page."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install chromium to look at the report in a browser")
    with TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--log-net-log={log}", *flags, page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        net = json.loads(log.read_text())
    begun = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in net["events"] if event["type"] == begun and "params" in event]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, console, [of["url"] for of in asked if of.get("initiator", ITS_OWN) != ITS_OWN])


def framed(page: Path, width: int, height: int) -> Path:
    """A page around another that is as wide as a phone to it, and writes down what it is told from within."""
    outer = page.with_name(f"{page.stem}-{width}.html")
    outer.write_text(
        f"""<!doctype html><body style="margin:0"><iframe src="{html.escape(page.as_uri())}" width="{width}"
        height="{height}" style="border:0;display:block"></iframe><script>
        addEventListener('message', (event) => {{
          const told = Object.assign(document.createElement('pre'), {{ id: 'found', textContent: event.data }});
          document.body.append(told);
        }});</script></body>"""
    )
    return outer


def screenshot(page: Path, picture: Path, width: int = 1200, height: int = 1600, dark: bool = False) -> Path:
    """A picture of a page, from its top, without the blank below."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shown = framed(page, width, height) if width < 500 else page
    chromium(shown, scheme, f"--window-size={max(width, 500)},{height}", f"--screenshot={picture}")
    found = imread(picture)[:, :width, :3]
    drawn = (found != found[-1, 0]).any((1, 2)).nonzero()[0]
    imsave(picture, found[: drawn.max(initial=0) + 20])
    return picture


def part(page: Path, result: str, folder: Path) -> Path:
    """A page with one of its results alone."""
    style = f"<style>header, section:not(#{result}) {{ display: none }} h2 {{ margin: 0; border: 0 }}</style></head>"
    alone = folder / f"{result}.html"
    alone.write_text(page.read_text().replace("</head>", style))
    return alone


def pictures(page: Path, folder: Path) -> list[Path]:
    """What the docs show of a report: its top, light and dark and on a phone, and its texts token by token."""
    with TemporaryDirectory() as temporary:
        copy = Path(shutil.copy(page, Path(temporary) / "report.html"))
        return [
            screenshot(copy, folder / "report.png", height=1500),
            screenshot(copy, folder / "report-dark.png", height=1500, dark=True),
            screenshot(copy, folder / "report-phone.png", PHONE, 1500),
            screenshot(part(copy, "by_token", copy.parent), folder / "report-tokens.png", height=1700),
        ]


if __name__ == "__main__":
    for taken in pictures(Path(sys.argv[1]).resolve(), Path(sys.argv[2])):
        print(taken)
