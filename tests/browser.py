"""Pages in headless Chromium, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--virtual-time-budget=3000",
)


def chromium(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run it; what stands on standard output is what flags ask for."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install chromium to look at the report in a browser")
    return subprocess.run([CHROMIUM, *FLAGS, *flags], capture_output=True, text=True, timeout=120, check=True)


def screenshot(page: Path, picture: Path, width: int = 1200, height: int = 1600, dark: bool = False) -> Path:
    """A picture of a page, from its top."""
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    chromium(*scheme, f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri())
    return picture
