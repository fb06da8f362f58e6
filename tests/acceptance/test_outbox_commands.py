"""`celery -A tasks nitro outbox …` and `nitro relay` as an operator calls them, on a machine without any server."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stacks import Stack, embedded
from worker import STOPS_WITHIN, Worker, end, until

DUE = "SELECT 1 FROM nitro_delivery WHERE id = :id AND due_at <= (julianday('now') - 2440587.5) * 86400.0"

on_embedded = pytest.mark.parametrize("stack", ["embedded"], indirect=True)


def listed(stack: Stack, *filters: object) -> list[dict[str, Any]]:
    """What `outbox list` gives a script."""
    found: list[dict[str, Any]] = json.loads(stack.project.celery("nitro", "outbox", "list", "--json", *filters))
    return found


def state(stack: Stack, task_id: str) -> str:
    """The state of a delivery."""
    ((found,),) = stack.rows("SELECT state FROM nitro_delivery WHERE id = :id", id=task_id)
    return str(found)


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Stack]:
    """A stack of one's own, where no worker relays."""
    with embedded(tmp_path) as running:
        yield running


@pytest.fixture
def relay(quiet: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing but relay, as soon as it does."""
    process = quiet.project.start("relay", "nitro", "relay")
    try:
        until(lambda: "until SIGINT or SIGTERM" in quiet.project.log("relay").read_text())
        yield process
    finally:
        end(process)


@pytest.fixture
def dead(stack: Stack, worker: Worker, key: str) -> str:
    """The id of a dead letter, whose handler would now succeed."""
    task_id = stack.emit("mended", key)["offloaded"]["mended"]
    until(lambda: state(stack, task_id) == "dead")
    Path(stack.project.environ["ACCEPTANCE_EFFECTS"], f"{key}.go").touch()
    return str(task_id)


@pytest.fixture
def waiting(quiet: Stack, key: str) -> str:
    """The id of a delivery to the queue `single` that has become due, and that nobody has published."""
    task_id = quiet.emit("later", key)["offloaded"]["later"]
    until(lambda: quiet.rows(DUE, id=task_id))
    assert (state(quiet, task_id), quiet.waiting("single")) == ("waiting", 0)
    return str(task_id)


@on_embedded
def test_a_dead_letter_is_listed(stack: Stack, dead: str) -> None:
    """With its handler and what it died of."""
    (letter,) = [row for row in listed(stack, "--state", "dead", "--event", "mended") if row["id"] == dead]
    assert (letter["handler"], letter["attempts"]) == ("project.handlers.mended", 1)
    assert letter["error"].splitlines()[-1] == "ConnectionError: not yet"


@on_embedded
def test_a_dead_letter_is_shown(stack: Stack, dead: str) -> None:
    """With the traceback that leads to the line that raised."""
    shown = stack.project.celery("nitro", "outbox", "show", dead)
    assert 'raise ConnectionError("not yet")' in shown


@on_embedded
def test_a_replayed_dead_letter_is_done(stack: Stack, dead: str, key: str) -> None:
    """The worker that runs takes it, under the same idempotency key."""
    assert stack.project.celery("nitro", "outbox", "replay", dead, "--yes") == "run again: 1 delivery\n"
    until(lambda: state(stack, dead) == "done")
    assert [effect["idempotency_key"] for effect in stack.effects(key)] == [dead, dead]


def test_a_discarded_message_does_not_run(quiet: Stack, key: str) -> None:
    """It is in the queue already; the worker that comes to it finds it cancelled."""
    task_id = quiet.emit("parked", key)["offloaded"]["parked"]
    quiet.project.celery("nitro", "outbox", "discard", task_id, "--state", "queued", "--yes")
    worker = quiet.worker("parked", "-c", "1")
    until(lambda: f"{task_id}] received" in worker.text)
    until(lambda: quiet.waiting("parked") == 0)
    quiet.emit("parked", f"{key}.after")
    quiet.effect(f"{key}.after")
    assert (state(quiet, task_id), quiet.effects(key)) == ("cancelled", [])


def test_relay_once_moves_what_waits(quiet: Stack, waiting: str) -> None:
    """To the queue of its handler; then it exits."""
    assert quiet.project.celery("nitro", "relay", "--once") == "moved to the broker: 1\n"
    assert (state(quiet, waiting), quiet.waiting("single")) == ("queued", 1)


def test_a_relay_moves_what_becomes_due(quiet: Stack, relay: subprocess.Popen[bytes], key: str) -> None:
    """It looks by itself, for as long as it runs."""
    quiet.emit("later", key)
    assert until(lambda: quiet.waiting("single")) == 1
    assert relay.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_relay_ends_when_it_is_told_to(relay: subprocess.Popen[bytes], number: int) -> None:
    """Ctrl-C and a service manager's stop are no error."""
    relay.send_signal(number)
    assert relay.wait(STOPS_WITHIN) == 0
