"""A headless Chromium: what a page holds when its scripts have run, and a picture of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

WITHIN = 60
"""Seconds."""
SCRIPTS = 5000
"""Milliseconds, of the page's own clock, for its scripts and what they load."""


def chromium() -> str:
    """The browser; skips, or fails where that is not allowed, when there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        say = pytest.fail if os.environ.get("NITRO_TEST_SERVERS") == "required" else pytest.skip
        say("MISSING BROWSER: no chromium; install the Debian package chromium")
    return found


def loaded(address: str, profile: Path) -> str:
    """The page as it is in the browser, as HTML."""
    return _run(address, profile, "--dump-dom")


def picture(address: str, profile: Path, file: Path, size: str) -> None:
    """Save what is seen of the page in a window of that size, such as `1200,800`."""
    _run(address, profile, f"--screenshot={file}", f"--window-size={size}", "--hide-scrollbars")


def _run(address: str, profile: Path, *options: str) -> str:
    how = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}")
    command = [chromium(), *how, f"--virtual-time-budget={SCRIPTS}", *options, address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=True)
    return ended.stdout
