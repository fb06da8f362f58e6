"""The page of `nitro trace --format html` in a browser."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from browser import html_of, save_picture
from stacks import Stack
from worker import Worker, until

pytestmark = pytest.mark.parametrize("stack", ["embedded"], indirect=True, scope="session")


def test_a_page_draws_each_run(stack: Stack, worker: Worker, key: str, tmp_path: Path) -> None:
    """Each handler has a line, and each of its runs a bar on it, later runs further right."""
    emitted = stack.emit("flaky", key)
    done = "SELECT 1 FROM nitro_delivery WHERE emission = :id AND state = 'done'"
    until(lambda: stack.rows(done, id=emitted["id"]))
    file = tmp_path / "trace.html"
    stack.project.celery("nitro", "trace", emitted["id"], "--format", "html", "-o", file)
    page = html_of(file.as_uri(), tmp_path / "profile")
    assert "flaky by str" in page
    bars = re.findall(r'class="bar (\w+)" style="left: ([\d.]+)%; width: ([\d.]+)%;?" title="([^"]*)"', page)
    runs = [(kind, float(left), title) for kind, left, _, title in bars if title.startswith("run ")]
    assert [(kind, title) for kind, _, title in runs] == [
        ("retried", "run 1: ConnectionError: try again"),
        ("retried", "run 2: ConnectionError: try again"),
        ("done", "run 3"),
    ]
    assert [left for _, left, _ in runs] == sorted(left for _, left, _ in runs)
    assert all(0 <= float(left) <= 100 and float(left) + float(width) <= 100.01 for _, left, width, _ in bars)
    if folder := os.environ.get("NITRO_PICTURES"):
        save_picture(file.as_uri(), tmp_path / "profile", Path(folder, "trace.png").absolute(), "1200,420")
