"""Where offloaded handlers go: the one installed distribution that says so, found when the first one is declared."""

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
    """Installs a distribution of that name, with these entry points, beside the script."""

    def install(name: str, entry_points: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
        (info / "entry_points.txt").write_text(entry_points)

    return install


def test_the_first_offload_finds_the_dispatcher(fresh_process: FreshProcess) -> None:
    """Inline handlers read no metadata and load no Celery; the first `offload=` does."""
    ran = fresh_process(DECLARING)
    assert ran.stdout.splitlines() == ["False False", "shop.mail True"], ran.stderr


def test_no_dispatcher_is_an_error_that_names_the_distribution(
    fresh_process: FreshProcess, distribution: Callable[[str, str], None]
) -> None:
    """Where the metadata of Nitro has no entry point, as of another version, the declaration says what to install."""
    distribution("nitro-celery", "[celery.commands]\nnitro = nitro.cli:nitro\n")
    ran = fresh_process(DECLARING)
    assert "NoDispatcher nothing can be offloaded, because no installed distribution" in ran.stdout, ran.stderr
    assert "install nitro-celery" in ran.stdout


def test_two_dispatchers_are_an_error_that_names_both(
    fresh_process: FreshProcess, distribution: Callable[[str, str], None]
) -> None:
    """Another distribution cannot take the place of Nitro's own by being there."""
    distribution("other-queue", "[nitro.dispatchers]\nother = other.queue:wire\n")
    ran = fresh_process(DECLARING)
    assert "NoDispatcher nothing can be offloaded, because several" in ran.stdout, ran.stderr
    assert "nitro-celery (nitro.bootstrap:wire)" in ran.stdout
    assert "other-queue (other.queue:wire)" in ran.stdout
