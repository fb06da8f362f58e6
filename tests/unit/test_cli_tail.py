"""`nitro tail`: contract section 10."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from nitro import cli
from nitro.cli.tail import Tail
from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Emission, Event, emit, on
from nitro.infrastructure.events.events import Namespace
from nitro.infrastructure.outbox import claims, pending

ROOT = Path(__file__).parents[2]
EMITTER = """
from nitro import emit, on
from nitro.infrastructure.offload import bind
from celery import Celery
bind(Celery("shop", broker="memory://"))
on("order.placed", offload=True, name="shop.mail")(lambda sender: None)
emit("order.placed", "ada")
"""


class Trolley(Entity):
    """The entity that is the sender."""


@pytest.fixture
def placed(app: Celery) -> Event:
    """An event with inline handlers and an offloaded one."""
    event = Namespace().event("order.placed")
    on(event, name="shop.check")(lambda sender: None)
    on(event, name="shop.alert", condition=lambda sender: False)(lambda sender: None)
    on(event, offload=True, name="shop.mail")(lambda sender: None)
    return event


def told(*arguments: str) -> list[dict[str, Any]]:
    """Returns the last hour's lines that `tail --json` prints."""
    arguments = ("tail", "--once", "--since", "1h", "--json", *arguments)
    shown = CliRunner().invoke(cli.nitro, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    return [json.loads(line) for line in shown.stdout.splitlines()]


def steps(lines: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """Returns state and handler of each line."""
    return [(line["state"], line["handler"]) for line in lines]


def run(emission: Emission, error: str | None = None) -> None:
    """Runs a delivery as a worker does: to its end, or to an error that is retried."""
    pending.take_due(10)
    started = claims.claim(emission.id, "shop.mail", "boot/1")
    assert isinstance(started, claims.Claim)
    claims.finish(started) if error is None else claims.reschedule(started, 0, error)


def test_it_shows_what_has_happened_in_order(placed: Event) -> None:
    """The lines are the emission, its inline handlers, and each step of its deliveries."""
    emission = emit(placed, Trolley(id="t1"))
    run(emission, "SMTPError: later")
    run(emission)
    lines = told()
    assert sorted(steps(lines)[:3]) == [("done", "shop.check"), ("emitted", None), ("skipped", "shop.alert")]
    assert steps(lines)[3:] == [
        ("running", "shop.mail"),
        ("retried", "shop.mail"),
        ("queued", "shop.mail"),
        ("running", "shop.mail"),
        ("done", "shop.mail"),
    ]
    assert {(line["event"], line["sender"], line["emission"]) for line in lines} == {
        ("order.placed", "Trolley:t1", emission.id)
    }
    assert [line["note"] for line in lines if line["state"] in ("retried", "skipped")] == [
        "condition is false",
        "run 1: SMTPError: later",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--handler", "shop.check"], [("done", "shop.check")]),
        (["--state", "skipped", "--state", "queued"], [("skipped", "shop.alert"), ("queued", "shop.mail")]),
        (["--sender", "Trolley:t2", "--state", "emitted"], [("emitted", None)]),
        (["--event", "order.cancelled"], []),
        (["--sender", "Trolley:t1"], []),
    ],
)
def test_it_can_be_filtered(placed: Event, arguments: list[str], expected: list[tuple[str, str | None]]) -> None:
    """Lines are filtered by event, handler, entity and state."""
    emit(placed, Trolley(id="t2"))
    assert steps(told(*arguments)) == expected


def test_it_begins_now_unless_told_otherwise(placed: Event) -> None:
    """Earlier steps are shown with `--since` only."""
    emit(placed, "ada")
    shown = CliRunner().invoke(cli.nitro, ["tail", "--once"], catch_exceptions=False)
    assert (shown.exit_code, shown.stdout) == (0, "")


def test_each_step_is_shown_once(placed: Event) -> None:
    """The next look shows a step, and no later look does."""
    tail = Tail(datetime.now(UTC))
    emission = emit(placed, "ada")
    assert {line.state for line in tail.new_lines()} == {"emitted", "done", "skipped", "queued"}
    assert tail.new_lines() == []
    run(emission, "SMTPError: later")
    assert [line.state for line in tail.new_lines()] == ["running", "retried", "waiting"]
    run(emission)
    assert [line.state for line in tail.new_lines()] == ["queued", "running", "done"]
    assert tail.new_lines() == []


def test_what_is_committed_late_is_shown(placed: Event) -> None:
    """An emission that commits after a later emission is still shown."""
    tail = Tail(datetime.now(UTC))
    with transaction():
        late = emit(placed, "late")
    emit(placed, "early")
    assert late.id in {line.emission for line in tail.new_lines()}


def test_texts_cannot_steer_a_terminal(app: Celery) -> None:
    """Control characters and line breaks in names are escaped."""
    event = Namespace().event("evil\x1bcforged\nline")
    on(event, offload=True, name="shop.mail")(lambda sender: None)
    emit(event, "ada")
    shown = CliRunner().invoke(cli.nitro, ["tail", "--once", "--since", "1h"], catch_exceptions=False)
    assert "\x1b" not in shown.stdout
    assert len(shown.stdout.splitlines()) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(tmp_path: Path, number: signal.Signals) -> None:
    """A `tail` process shows steps as they happen, and exits with 0 on SIGINT or SIGTERM."""
    environ = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "NITRO_HOME": str(tmp_path / "home"),
        "NITRO_DB_URL": f"sqlite:///{tmp_path / 'nitro.db'}",
        "PYTHONUNBUFFERED": "1",
    }
    subprocess.run([sys.executable, "-c", EMITTER], cwd=tmp_path, env=environ, check=True, timeout=60)
    command = [sys.executable, "-m", "celery", "-A", "tasks", "nitro", "tail", "--since", "1h", "--state", "emitted"]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "order.placed" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


def test_a_name_that_is_nowhere_known_is_told(app: Celery) -> None:
    """An unknown handler is a warning, because it may start later."""
    done = CliRunner().invoke(cli.nitro, ["tail", "--once", "--handler", "shop.nowhere"])
    assert done.exit_code == 0
    assert "warning: no handler is named 'shop.nowhere'" in done.stderr
