"""`celery -A tasks nitro outbox …` and `nitro relay` work for an operator on a machine without any server."""

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
    """Returns the rows of `outbox list --json`."""
    rows: list[dict[str, Any]] = json.loads(stack.project.celery("nitro", "outbox", "list", "--json", *filters))
    return rows


def state(stack: Stack, task_id: str) -> str:
    """Returns the state of a delivery."""
    ((current,),) = stack.rows("SELECT state FROM nitro_delivery WHERE id = :id", id=task_id)
    return str(current)


@pytest.fixture
def idle_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test, without a worker that relays."""
    with embedded(tmp_path) as running:
        yield running


@pytest.fixture
def relay(idle_stack: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """A running `nitro relay` process."""
    process = idle_stack.project.start("relay", "nitro", "relay")
    try:
        until(lambda: "until SIGINT or SIGTERM" in idle_stack.project.log("relay").read_text())
        yield process
    finally:
        end(process)


@pytest.fixture
def dead(stack: Stack, worker: Worker, key: str) -> str:
    """The id of a dead letter whose handler would succeed now."""
    task_id = stack.emit("mended", key)["offloaded"]["mended"]
    until(lambda: state(stack, task_id) == "dead")
    Path(stack.project.environ["ACCEPTANCE_EFFECTS"], f"{key}.go").touch()
    return str(task_id)


@pytest.fixture
def waiting(idle_stack: Stack, key: str) -> str:
    """The id of a due delivery to the queue `single` that has not been published."""
    task_id = idle_stack.emit("later", key)["offloaded"]["later"]
    until(lambda: idle_stack.rows(DUE, id=task_id))
    assert (state(idle_stack, task_id), idle_stack.waiting("single")) == ("waiting", 0)
    return str(task_id)


@on_embedded
def test_a_dead_letter_is_listed(stack: Stack, dead: str) -> None:
    """`outbox list` shows a dead letter with its handler and its error."""
    (letter,) = [row for row in listed(stack, "--state", "dead", "--event", "mended") if row["id"] == dead]
    assert (letter["handler"], letter["attempts"]) == ("project.handlers.mended", 1)
    assert letter["error"].splitlines()[-1] == "ConnectionError: not yet"


@on_embedded
def test_a_dead_letter_is_shown(stack: Stack, dead: str) -> None:
    """`outbox show` has the traceback of a dead letter."""
    shown = stack.project.celery("nitro", "outbox", "show", dead)
    assert 'raise ConnectionError("not yet")' in shown


@on_embedded
def test_a_replayed_dead_letter_is_done(stack: Stack, dead: str, key: str) -> None:
    """A replayed dead letter is run by the running worker, with the same idempotency key."""
    assert stack.project.celery("nitro", "outbox", "replay", dead, "--yes") == "run again: 1 delivery\n"
    until(lambda: state(stack, dead) == "done")
    assert [effect["idempotency_key"] for effect in stack.effects(key)] == [dead, dead]


def test_a_discarded_message_does_not_run(idle_stack: Stack, key: str) -> None:
    """A discarded delivery whose message is queued already does not run."""
    task_id = idle_stack.emit("parked", key)["offloaded"]["parked"]
    idle_stack.project.celery("nitro", "outbox", "discard", task_id, "--state", "queued", "--yes")
    worker = idle_stack.worker("parked", "-c", "1")
    until(lambda: f"{task_id}] received" in worker.text)
    until(lambda: idle_stack.waiting("parked") == 0)
    idle_stack.emit("parked", f"{key}.after")
    idle_stack.effect(f"{key}.after")
    assert (state(idle_stack, task_id), idle_stack.effects(key)) == ("cancelled", [])


def test_relay_once_moves_what_waits(idle_stack: Stack, waiting: str) -> None:
    """`relay --once` publishes a waiting delivery to its handler's queue, and exits."""
    assert idle_stack.project.celery("nitro", "relay", "--once") == "moved to the broker: 1\n"
    assert (state(idle_stack, waiting), idle_stack.waiting("single")) == ("queued", 1)


def test_a_relay_moves_what_becomes_due(idle_stack: Stack, relay: subprocess.Popen[bytes], key: str) -> None:
    """A running relay publishes deliveries as they become due."""
    idle_stack.emit("later", key)
    assert until(lambda: idle_stack.waiting("single")) == 1
    assert relay.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_relay_ends_when_it_is_told_to(relay: subprocess.Popen[bytes], number: int) -> None:
    """A relay exits with 0 after SIGINT and SIGTERM."""
    relay.send_signal(number)
    assert relay.wait(STOPS_WITHIN) == 0
