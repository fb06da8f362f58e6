"""A headless Chromium returns the HTML of a page after its scripts, or saves a picture of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TIMEOUT_SECONDS = 60
"""Seconds that Chromium may run."""
SCRIPT_MILLISECONDS = 5000
"""Milliseconds of the page's own clock for its scripts and their requests."""


def chromium() -> str:
    """Returns the browser's path; without a browser it skips the test, or fails it if servers are required."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        report = pytest.fail if os.environ.get("NITRO_TEST_SERVERS") == "required" else pytest.skip
        report("MISSING BROWSER: no chromium; install the Debian package chromium")
    return path


def html_of(address: str, profile: Path) -> str:
    """Returns the page's HTML after its scripts."""
    return _run(address, profile, "--dump-dom")


def save_picture(address: str, profile: Path, file: Path, size: str) -> None:
    """Saves a picture of the page in a window of this size, such as `1200,800`."""
    _run(address, profile, f"--screenshot={file}", f"--window-size={size}", "--hide-scrollbars")


def _run(address: str, profile: Path, *options: str) -> str:
    settings = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}")
    command = [chromium(), *settings, f"--virtual-time-budget={SCRIPT_MILLISECONDS}", *options, address]
    process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
    return process.stdout
