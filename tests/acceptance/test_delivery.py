"""Deliveries on every stack are cancelled, retried, interrupted or killed: contract, sections 4 to 7."""

from __future__ import annotations

import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Connection

from stacks import Stack
from worker import Worker, until


def test_a_cancelled_emit_leaves_the_queue_empty(stack: Stack, key: str) -> None:
    """A handler that returns False keeps the message out of the queue."""
    stack.emit("parked", key)
    waiting = stack.waiting("parked")
    assert stack.emit("parked", key, sender="cancelled")["cancelled_by"] == "project.handlers.gate"
    assert waiting >= 1
    assert stack.waiting("parked") == waiting


def test_a_rollback_leaves_the_queue_empty(stack: Stack, key: str) -> None:
    """A rolled-back emit leaves neither a row nor a message."""
    stack.emit("parked", key)
    waiting = stack.waiting("parked")
    stack.emit("rolled-back", key)
    assert stack.waiting("parked") == waiting
    assert stack.rows('SELECT id FROM "order" WHERE id = :key', key=key) == []


def test_a_retry_succeeds_at_the_third_try(stack: Stack, worker: Worker, key: str) -> None:
    """All attempts of a delivery are counted under one task id and one idempotency key."""
    task_id = stack.emit("flaky", key)["offloaded"]["flaky"]
    assert stack.ended(task_id) == "SUCCESS"
    effects = stack.effects(key)
    assert [effect["attempt"] for effect in effects] == [1, 2, 3]
    assert {effect["idempotency_key"] for effect in effects} == {task_id}


def test_a_retry_reaches_a_queue_of_its_own(stack: Stack, single: Worker, key: str) -> None:
    """A delayed retry returns to the handler's own queue."""
    task_id = stack.emit("flaky.elsewhere", key)["offloaded"]["flaky_elsewhere"]
    assert stack.ended(task_id) == "SUCCESS"
    assert [effect["attempt"] for effect in stack.effects(key)] == [1, 2]


def test_an_expected_error_is_not_retried(stack: Stack, worker: Worker, key: str) -> None:
    """An exception in `throws` fails the task without a retry and without a traceback in the worker's log."""
    task_id = stack.emit("expected", key)["offloaded"]["expected"]
    assert stack.ended(task_id) == "FAILURE"
    assert len(stack.effects(key)) == 1
    assert until(lambda: [line for line in worker.text.splitlines() if task_id in line and "raised expected" in line])


def test_a_soft_limit_interrupts_a_sync_handler(stack: Stack, single: Worker, key: str) -> None:
    """A sync handler gets SoftTimeLimitExceeded, and its process runs the next task."""
    task_id = stack.emit("slow.sync", key)["offloaded"]["slow_sync"]
    assert stack.ended(task_id) == "FAILURE"
    stack.emit("after", key)
    interrupted, following = stack.effect(key, 2)
    assert interrupted["interrupted"] is True
    assert following["pid"] == interrupted["pid"]


def test_a_soft_limit_interrupts_an_async_handler(stack: Stack, single: Worker, key: str) -> None:
    """An async handler is cancelled with the tasks that it left running; none of them runs in the next task."""
    task_id = stack.emit("slow.async", key)["offloaded"]["slow_async"]
    assert stack.ended(task_id) == "FAILURE"
    stack.emit("after", key)
    handler, lingering, following = stack.effect(key, 3)
    assert (handler["interrupted"], lingering["interrupted"]) == (True, "what it left running")
    assert following["pid"] == handler["pid"]
    assert following["running"] == []


def test_a_hard_limit_ends_the_handler(stack: Stack, single: Worker, key: str) -> None:
    """A hard time limit replaces the process; the task has failed and does not run again."""
    task_id = stack.emit("slow.hard", key)["offloaded"]["slow_hard"]
    assert stack.ended(task_id) == "FAILURE"
    stack.emit("after", key)
    started, following = stack.effect(key, 2)
    assert started["handler"] == "project.handlers.slow_hard"
    assert following["handler"] == "project.handlers.after"
    assert following["pid"] != started["pid"]


def test_a_countdown_delays_no_other_task(stack: Stack, single: Worker, key: str) -> None:
    """A delivery with a countdown occupies no worker process before it is due."""
    stack.emit("later", key, then="after")
    prompt, delayed = stack.effect(key, 2)
    assert [prompt["handler"], delayed["handler"]] == ["project.handlers.after", "project.handlers.later"]


def test_a_task_whose_child_was_killed_runs_again(stack: Stack, worker: Worker, key: str) -> None:
    """A delivery whose process was killed runs again."""
    task_id = stack.emit("deadly", key)["offloaded"]["deadly"]
    first, second = stack.effect(key, 2)
    assert first["pid"] != second["pid"]
    assert until(lambda: stack.result(task_id).state == "SUCCESS")


def test_at_most_once_never_runs_again(stack: Stack, worker: Worker, key: str) -> None:
    """An at-most-once delivery whose process was killed is neither queued nor retried."""
    task_id = stack.emit("deadly.once", key)["offloaded"]["deadly_once"]
    assert stack.ended(task_id) == "FAILURE"
    stack.emit("kinds", f"{key}.after")
    stack.effect(f"{key}.after", 4)
    assert stack.waiting("nitro") == 0
    assert len(stack.effects(key)) == 1


def test_reload_sees_the_row_and_snapshot_the_emission(stack: Stack, worker: Worker, key: str) -> None:
    """A row that changes after the emit arrives changed with `reload`, and unchanged with `snapshot`."""
    stack.emit("changed", key)
    totals = {effect["handler"].rpartition(".")[2]: effect["total"] for effect in stack.effect(key, 2)}
    assert totals == {"snapshot": 1, "reloaded": 2}


def test_a_vanished_row_fails_or_skips(stack: Stack, worker: Worker, key: str) -> None:
    """`on_missing` fails or skips a task without a row; the handler runs in neither case."""
    offloaded = stack.emit("vanished", key)["offloaded"]
    assert stack.ended(offloaded["fails"]) == "FAILURE"
    assert "has no row any more" in str(stack.result(offloaded["fails"]).result)
    assert stack.ended(offloaded["skips"]) == "SUCCESS"
    assert stack.effects(key) == []


@pytest.mark.parametrize("stack", [pytest.param("rabbitmq", marks=pytest.mark.server)], indirect=True)
@pytest.mark.parametrize("queue", ["nitro", "single"])
def test_queues_on_rabbitmq_are_quorum_queues(stack: Stack, worker: Worker, single: Worker, queue: str) -> None:
    """The default queue and a handler's own queue are quorum queues; declaring another type is refused."""
    with Connection(stack.project.environ["NITRO_BROKER_URL"]) as connection:
        channel = connection.default_channel
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        with pytest.raises(PreconditionFailed, match="x-queue-type"):
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": "classic"})
