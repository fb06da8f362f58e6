"""Handlers in the script that runs as `__main__`: contract section 3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
from nitro.infrastructure.events import emit, on

@on("order.placed")
def stock(sender):
    print("stocked", sender)

if __name__ == "__main__":
    emit("order.placed", "ada")
"""


@pytest.mark.parametrize("listed", ["", "shop.handlers", "shop"])
def test_naming_a_script_imports_nothing(tmp_path: Path, fresh_process: Callable[..., Any], listed: str) -> None:
    """Naming the handler of a script does not import its package, so that the handler is registered once."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("print('package')\nfrom shop import handlers\n", encoding="utf-8")
    process = fresh_process(SCRIPT, file="shop/handlers.py", NITRO_HANDLERS=listed)
    assert (process.returncode, process.stdout, process.stderr) == (0, "stocked ada\n", "")
