"""The command that a message tells the reader to run: contract section 2."""

from __future__ import annotations

import pytest

from nitro.errors import OutboxOutdated
from nitro.invocation import celery_command


@pytest.mark.parametrize(
    ("arguments", "app"),
    [
        (["/srv/bin/celery", "-A", "shop", "worker"], "shop"),
        (["celery", "--app", "shop.main:app", "nitro", "init"], "shop.main:app"),
        (["celery", "--app=shop", "worker"], "shop"),
        (["celery", "-Ashop", "worker"], "shop"),
        (["/lib/celery/__main__.py", "-q", "-A", "shop", "worker"], "shop"),
        (["celery", "worker"], "<your app>"),
        (["celery", "worker", "-A"], "<your app>"),
        (["uvicorn", "-A", "web"], "<your app>"),
        ([""], "<your app>"),
        ([], "<your app>"),
    ],
)
def test_a_message_names_the_app_of_the_reader(arguments: list[str], app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the `-A` of this celery process; another program's `-A` is ignored."""
    monkeypatch.delenv("APP", raising=False)
    monkeypatch.setattr("sys.argv", arguments)
    assert celery_command("nitro init") == f"celery -A {app} nitro init"
    assert f"`celery -A {app} nitro init`" in str(OutboxOutdated("sqlite:///a.db", None, 1))


def test_a_message_names_the_app_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery takes the app from the variable APP if no option names one."""
    monkeypatch.setenv("APP", "shop")
    monkeypatch.setattr("sys.argv", ["celery", "worker"])
    assert celery_command("worker") == "celery -A shop worker"
