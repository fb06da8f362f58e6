"""Workers that are killed, handlers that kill theirs, and workers that are asked to stop: contract, section 7."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stacks import Stack, embedded
from worker import Worker, end, until

BEGINS_AGAIN = 60.0
"""Seconds in which a delivery whose worker died starts again."""
GRACE = 30.0
"""Seconds that Kubernetes gives."""
QUICK = ("--", "worker.soft_shutdown_timeout=1")
EMBEDDED = pytest.mark.parametrize("stack", ["embedded"], indirect=True)

Hire = Callable[..., Worker]


@pytest.fixture
def hire(stack: Stack) -> Iterator[Hire]:
    """Starts workers of the queue `mortal`, which end with the test."""
    hired: list[Worker] = []

    def start(*arguments: str) -> Worker:
        hired.append(stack.project.worker(f"mortal{len(hired)}", "-Q", "mortal", *(arguments or ("-c", "1"))))
        return hired[-1]

    yield start
    end(*(worker.process for worker in hired if worker.process.poll() is None))


def kill(worker: Worker, how: signal.Signals = signal.SIGKILL) -> None:
    """Signal a worker and all its children at once."""
    os.killpg(worker.pid, how)


def delivery(stack: Stack, facts: dict[str, Any]) -> Any:
    """The row of the one delivery of an emission."""
    (row,) = stack.rows("SELECT * FROM nitro_delivery WHERE emission = :id", id=facts["id"])
    return row


def in_state(stack: Stack, facts: dict[str, Any], state: str, within: float = BEGINS_AGAIN) -> Any:
    """The row, as soon as it is in a state."""
    return until(lambda: row if (row := delivery(stack, facts)).state == state else None, within)


@pytest.mark.parametrize("event", ["mortal.once", "mortal.least"])
def test_a_run_whose_worker_was_killed_begins_anew(stack: Stack, hire: Hire, key: str, event: str) -> None:
    """On every broker, under the same idempotency key; what it wrote exactly once is there once."""
    facts = stack.emit(event, key)
    worker = hire()
    stack.effect(key)
    kill(worker)
    worker.process.wait(GRACE)
    hire()
    row = in_state(stack, facts, "done")
    effects = stack.effects(key)
    assert [effect["attempt"] for effect in effects] == [1, 2]
    assert {effect["idempotency_key"] for effect in effects} == {row.id}
    written = stack.rows("SELECT id FROM receipt WHERE id LIKE :mine", mine=f"{key}.%")
    assert [receipt.id for receipt in written] == ([f"{key}.2"] if event == "mortal.once" else [])


def test_poison_is_parked_and_the_good_are_done(stack: Stack, hire: Hire, key: str) -> None:
    """A handler that ends its process each time is a dead letter; its worker lives and does the rest."""
    poison = stack.emit("mortal.exit", key)
    worker = hire("-c", "2")
    good = stack.emit("mortal.good", f"{key}.good", times=5)
    dead = in_state(stack, poison, "dead")
    assert (dead.losses, len(stack.effects(key))) == (5, 5)
    assert "its process died" in dead.error
    stack.effect(f"{key}.good", 5)
    in_state(stack, good, "done")
    assert worker.process.poll() is None


@EMBEDDED
def test_a_hard_limit_is_a_failure_that_is_retried(stack: Stack, hire: Hire, key: str) -> None:
    """By the task's own options; then it is a dead letter."""
    facts = stack.emit("mortal.hard", key)
    hire()
    dead = in_state(stack, facts, "dead")
    assert (dead.attempts, dead.retries) == (2, 1)
    assert "hard time limit of 1 s" in dead.error


@pytest.mark.parametrize(
    ("event", "pool"), [("mortal.once", "prefork"), ("mortal.least", "prefork"), ("mortal.least", "threads")]
)
def test_a_worker_that_stops_gives_back_what_takes_too_long(tmp_path: Path, key: str, event: str, pool: str) -> None:
    """It exits within the grace, and another one runs it at once; that is no loss of the handler's doing.

    On a stack of its own: any other worker there would publish at once what is given back.
    """
    with embedded(tmp_path / "project") as stack:
        facts = stack.emit(event, key)
        worker = stack.worker("mortal", "-P", pool, "-c", "1", *QUICK)
        stack.effect(key)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(GRACE) == 0
        given_back = delivery(stack, facts)
        assert (given_back.state, given_back.losses, given_back.attempts) == ("waiting", 0, 1)
        stack.workers["next"] = stack.project.worker("next", "-Q", "mortal", "-c", "1")
        in_state(stack, facts, "done")


@EMBEDDED
def test_a_worker_stops_although_a_thread_holds_the_database(stack: Stack, hire: Hire, key: str) -> None:
    """An exactly-once handler on a thread has SQLite's write lock; its run is found by the next worker."""
    facts = stack.emit("mortal.once", key)
    worker = hire("-P", "threads", "-c", "1", *QUICK)
    stack.effect(key)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(GRACE) == 0
    hire()
    in_state(stack, facts, "done")


def test_a_worker_that_waits_for_what_is_not_tracked_ends_with_it(tmp_path: Path, key: str) -> None:
    """A run that is not tracked cannot begin anew, and is left to end; the tracked ones do not outlast it.

    On a stack of its own: any other worker there would publish at once what is given back.
    """
    with embedded(tmp_path / "project") as stack:
        untracked, facts = stack.emit("mortal.untracked", f"{key}.other"), stack.emit("mortal.least", key)
        worker = stack.worker("mortal", "-P", "prefork", "-c", "2", *QUICK)
        stack.effect(f"{key}.other")
        stack.effect(key)
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: "the worker goes on: 1 tasks" in worker.text)
        Path(stack.project.environ["ACCEPTANCE_EFFECTS"], f"{key}.other.go").touch()
        assert worker.process.wait(GRACE) == 0
        assert stack.ended(*untracked["offloaded"].values()) == "SUCCESS"
        assert delivery(stack, facts).state == "waiting"


def test_a_worker_ends_although_its_folder_and_its_database_are_gone(tmp_path: Path, key: str) -> None:
    """Nothing is left that its runs could be closed in, and they are not waited for."""
    with embedded(tmp_path / "project") as stack:
        stack.emit("mortal.least", key)
        worker = stack.worker("mortal", "-c", "1", *QUICK)
        stack.effect(key)
        shutil.rmtree(stack.project.environ["NITRO_HOME"])
        for file in stack.project.logs.glob("nitro.db*"):
            file.unlink()
        worker.process.wait(GRACE)


@EMBEDDED
def test_a_signal_to_the_whole_group_loses_nothing(stack: Stack, hire: Hire, key: str) -> None:
    """As systemd and a shell send it: children and main process are told to end at once."""
    facts = stack.emit("mortal.least", key)
    worker = hire("-c", "2", *QUICK)
    stack.effect(key)
    kill(worker, signal.SIGTERM)
    worker.process.wait(GRACE)
    hire()
    in_state(stack, facts, "done")


@EMBEDDED
def test_a_revoked_run_that_is_terminated_is_cancelled(stack: Stack, hire: Hire, key: str) -> None:
    """Celery's `revoke(terminate=True)` ends the process of the handler, and its row says so."""
    facts = stack.emit("mortal.least", key)
    hire()
    stack.effect(key)
    stack.project.celery("control", "terminate", "SIGKILL", facts["offloaded"]["least"])
    in_state(stack, facts, "cancelled")
    assert len(stack.effects(key)) == 1
