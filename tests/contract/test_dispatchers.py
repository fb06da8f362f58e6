"""The dispatcher of offloaded handlers, found at the first offload through the one distribution that has one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

FreshProcess = Callable[..., "subprocess.CompletedProcess[str]"]

DECLARING = """
    import sys
    from nitro import emit, event, on
    from nitro.errors import DeclarationError

    placed = event("placed")

    @on(placed)
    def count(sender): ...

    emit(placed, "an order")
    print("importlib.metadata" in sys.modules, "nitro.bootstrap" in sys.modules)
    try:
        @on(placed, offload=True, name="shop.mail")
        def mail(sender): ...
    except DeclarationError as error:
        print(type(error).__name__, error)
    else:
        print(mail.task.name, "nitro.bootstrap" in sys.modules)
"""


@pytest.fixture
def distribution(tmp_path: Path) -> Callable[[str, str], None]:
    """A function that installs a distribution of that name, with these entry points, beside the script."""

    def install(name: str, entry_points: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
        (info / "entry_points.txt").write_text(entry_points)

    return install


def test_the_first_offload_finds_the_dispatcher(fresh_process: FreshProcess) -> None:
    """Inline handlers read no metadata and load no Celery; the first `offload=` does."""
    process = fresh_process(DECLARING)
    assert process.stdout.splitlines() == ["False False", "shop.mail True"], process.stderr


def test_no_dispatcher_is_an_error_that_names_the_distribution(
    fresh_process: FreshProcess, distribution: Callable[[str, str], None]
) -> None:
    """Without an entry point, as of another version of Nitro, the declaration names the distribution to install."""
    distribution("nitro-celery", "[celery.commands]\nnitro = nitro.cli:nitro\n")
    process = fresh_process(DECLARING)
    assert "NoDispatcher nothing can be offloaded, because no installed distribution" in process.stdout, process.stderr
    assert "install nitro-celery" in process.stdout


def test_two_dispatchers_are_an_error_that_names_both(
    fresh_process: FreshProcess, distribution: Callable[[str, str], None]
) -> None:
    """A second distribution with a dispatcher does not replace Nitro's, and the error names both."""
    distribution("other-queue", "[nitro.dispatchers]\nother = other.queue:wire\n")
    process = fresh_process(DECLARING)
    assert "NoDispatcher nothing can be offloaded, because several" in process.stdout, process.stderr
    assert "nitro-celery (nitro.bootstrap:wire)" in process.stdout
    assert "other-queue (other.queue:wire)" in process.stdout
