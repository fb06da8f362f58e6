"""The Python blocks of the README, the guide and the page for those on call run as written, each in a fresh process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in (ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "on-call.md")
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_as_written(block: str, tmp_path: Path) -> None:
    """A reader can paste it into a file and run it, with no server and no setting."""
    script = tmp_path / "page.py"
    script.write_text(block)
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_there_are_blocks() -> None:
    """The pages are found, so that the test above cannot pass for want of blocks."""
    assert len(BLOCKS) >= 9
