"""Workers are killed, killed by their handlers, or stopped: contract, section 7."""

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

RESTART_SECONDS = 60.0
"""Seconds within which a delivery whose worker died starts again."""
GRACE_SECONDS = 30.0
"""Seconds between SIGTERM and SIGKILL in Kubernetes."""
QUICK = ("--", "worker.soft_shutdown_timeout=1")
EMBEDDED = pytest.mark.parametrize("stack", ["embedded"], indirect=True)

StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(stack: Stack) -> Iterator[StartWorker]:
    """Starts workers of the queue `mortal`, and ends them with the test."""
    workers: list[Worker] = []

    def start(*arguments: str) -> Worker:
        workers.append(stack.project.worker(f"mortal{len(workers)}", "-Q", "mortal", *(arguments or ("-c", "1"))))
        return workers[-1]

    yield start
    end(*(worker.process for worker in workers if worker.process.poll() is None))


def kill(worker: Worker, number: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to a worker and all its children at once."""
    os.killpg(worker.pid, number)


def delivery(stack: Stack, facts: dict[str, Any]) -> Any:
    """Returns the row of the only delivery of an emission."""
    (row,) = stack.rows("SELECT * FROM nitro_delivery WHERE emission = :id", id=facts["id"])
    return row


def in_state(stack: Stack, facts: dict[str, Any], state: str, within: float = RESTART_SECONDS) -> Any:
    """Waits until the delivery is in a state, and returns its row."""
    return until(lambda: row if (row := delivery(stack, facts)).state == state else None, within)


@pytest.mark.parametrize("event", ["mortal.once", "mortal.least"])
def test_a_run_whose_worker_was_killed_begins_anew(
    stack: Stack, start_worker: StartWorker, key: str, event: str
) -> None:
    """A run whose worker was killed starts again with the same idempotency key; exactly-once writes exist once."""
    facts = stack.emit(event, key)
    worker = start_worker()
    stack.effect(key)
    kill(worker)
    worker.process.wait(GRACE_SECONDS)
    start_worker()
    row = in_state(stack, facts, "done")
    effects = stack.effects(key)
    assert [effect["attempt"] for effect in effects] == [1, 2]
    assert {effect["idempotency_key"] for effect in effects} == {row.id}
    receipts = stack.rows("SELECT id FROM receipt WHERE id LIKE :pattern", pattern=f"{key}.%")
    assert [receipt.id for receipt in receipts] == ([f"{key}.2"] if event == "mortal.once" else [])


def test_poison_is_parked_and_the_good_are_done(stack: Stack, start_worker: StartWorker, key: str) -> None:
    """A handler that ends its process each time becomes a dead letter, while its worker runs the other deliveries."""
    poison = stack.emit("mortal.exit", key)
    worker = start_worker("-c", "2")
    good = stack.emit("mortal.good", f"{key}.good", times=5)
    dead = in_state(stack, poison, "dead")
    assert (dead.losses, len(stack.effects(key))) == (5, 5)
    assert "its process died" in dead.error
    stack.effect(f"{key}.good", 5)
    in_state(stack, good, "done")
    assert worker.process.poll() is None


@EMBEDDED
def test_a_hard_limit_is_a_failure_that_is_retried(stack: Stack, start_worker: StartWorker, key: str) -> None:
    """A hard time limit is retried by the task's options, and then becomes a dead letter."""
    facts = stack.emit("mortal.hard", key)
    start_worker()
    dead = in_state(stack, facts, "dead")
    assert (dead.attempts, dead.retries) == (2, 1)
    assert "hard time limit of 1 s" in dead.error


@pytest.mark.parametrize(
    ("event", "pool"), [("mortal.once", "prefork"), ("mortal.least", "prefork"), ("mortal.least", "threads")]
)
def test_a_worker_that_stops_gives_back_what_takes_too_long(tmp_path: Path, key: str, event: str, pool: str) -> None:
    """A stopping worker returns a long run within the grace period; another worker runs it at once, without a loss.

    The stack is the test's own, because other workers would publish the returned delivery at once.
    """
    with embedded(tmp_path / "project") as stack:
        facts = stack.emit(event, key)
        worker = stack.worker("mortal", "-P", pool, "-c", "1", *QUICK)
        stack.effect(key)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(GRACE_SECONDS) == 0
        returned = delivery(stack, facts)
        assert (returned.state, returned.losses, returned.attempts) == ("waiting", 0, 1)
        stack.workers["next"] = stack.project.worker("next", "-Q", "mortal", "-c", "1")
        in_state(stack, facts, "done")


@EMBEDDED
def test_a_worker_stops_although_a_thread_holds_the_database(stack: Stack, start_worker: StartWorker, key: str) -> None:
    """A worker stops although a handler on a thread holds SQLite's write lock; the next worker runs the delivery."""
    facts = stack.emit("mortal.once", key)
    worker = start_worker("-P", "threads", "-c", "1", *QUICK)
    stack.effect(key)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(GRACE_SECONDS) == 0
    start_worker()
    in_state(stack, facts, "done")


def test_a_worker_that_waits_for_what_is_not_tracked_ends_with_it(tmp_path: Path, key: str) -> None:
    """A stopping worker waits for an untracked run, and returns its tracked runs meanwhile.

    The stack is the test's own, because any other worker would publish the returned runs at once.
    """
    with embedded(tmp_path / "project") as stack:
        untracked, facts = stack.emit("mortal.untracked", f"{key}.other"), stack.emit("mortal.least", key)
        worker = stack.worker("mortal", "-P", "prefork", "-c", "2", *QUICK)
        stack.effect(f"{key}.other")
        stack.effect(key)
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: "the worker stops later: 1 untracked tasks" in worker.text)
        Path(stack.project.environ["ACCEPTANCE_EFFECTS"], f"{key}.other.go").touch()
        assert worker.process.wait(GRACE_SECONDS) == 0
        assert stack.ended(*untracked["offloaded"].values()) == "SUCCESS"
        assert delivery(stack, facts).state == "waiting"


def test_a_worker_ends_although_its_folder_and_its_database_are_gone(tmp_path: Path, key: str) -> None:
    """A worker without its folder and database ends without waiting for its runs."""
    with embedded(tmp_path / "project") as stack:
        stack.emit("mortal.least", key)
        worker = stack.worker("mortal", "-c", "1", *QUICK)
        stack.effect(key)
        shutil.rmtree(stack.project.environ["NITRO_HOME"])
        for file in stack.project.logs.glob("nitro.db*"):
            file.unlink()
        worker.process.wait(GRACE_SECONDS)


@EMBEDDED
def test_a_signal_to_the_whole_group_loses_nothing(stack: Stack, start_worker: StartWorker, key: str) -> None:
    """SIGTERM to the whole process group, as by systemd or a shell, loses no delivery."""
    facts = stack.emit("mortal.least", key)
    worker = start_worker("-c", "2", *QUICK)
    stack.effect(key)
    kill(worker, signal.SIGTERM)
    worker.process.wait(GRACE_SECONDS)
    start_worker()
    in_state(stack, facts, "done")


@EMBEDDED
def test_a_revoked_run_that_is_terminated_is_cancelled(stack: Stack, start_worker: StartWorker, key: str) -> None:
    """`revoke(terminate=True)` ends the handler's process and cancels its row."""
    facts = stack.emit("mortal.least", key)
    start_worker()
    stack.effect(key)
    stack.project.celery("control", "terminate", "SIGKILL", facts["offloaded"]["least"])
    in_state(stack, facts, "cancelled")
    assert len(stack.effects(key)) == 1
