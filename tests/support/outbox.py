"""The outbox: deliveries as records, runs of a worker, the relay, and changes of rows that only a test makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.outbox import claims, health, heartbeat, history, operations, pending, retention
from nitro.infrastructure.outbox.claims import Claim, Refusal
from nitro.infrastructure.outbox.history import EmissionRecord
from nitro.infrastructure.outbox.operations import DeliveryRecord
from nitro.infrastructure.outbox.relay import Relay
from nitro.infrastructure.outbox.rows import MAX_LEASE_SECONDS
from nitro.infrastructure.outbox.schema import OPEN_STATES
from nitro.infrastructure.outbox.schema import deliveries as delivery_table
from nitro.infrastructure.outbox.schema import emissions as emission_table
from nitro.infrastructure.outbox.schema import workers as worker_table
from nitro.infrastructure.outbox.versions import ensure_current
from nitro.infrastructure.worker import supervisor
from nitro.infrastructure.worker.identity import worker_id

__all__ = ["MAX_LEASE_SECONDS", "Claim", "DeliveryRecord", "Relay", "worker_id"]


def deliveries() -> list[DeliveryRecord]:
    """Returns all deliveries."""
    return operations.read_deliveries()


def delivery() -> DeliveryRecord:
    """Returns the only delivery."""
    (record,) = operations.read_deliveries()
    return record


def states() -> dict[str, str]:
    """Returns the states of the deliveries by handler."""
    return {record.handler: record.state for record in operations.read_deliveries()}


def count_by_state() -> dict[str, int]:
    """Returns the numbers of deliveries by state."""
    return operations.count_by_state()


def deliveries_with_id(identity: str) -> list[DeliveryRecord]:
    """Returns the deliveries with this id, or of the emission with this id."""
    return operations.read_deliveries(operations.has_id_in([identity]))


def deliveries_of(event: str, handler: str) -> list[DeliveryRecord]:
    """Returns the deliveries of an event to a handler."""
    return operations.read_deliveries(operations.is_of_event(event), operations.is_for_handler(handler))


def count_deliveries(connection: Connection) -> int:
    """Returns the number of deliveries that a connection sees."""
    return int(connection.scalar(select(func.count()).select_from(delivery_table)) or 0)


def open_deliveries(connection: Connection) -> list[str]:
    """Returns the ids of the deliveries that a connection sees and that are not closed."""
    return list(connection.scalars(select(delivery_table.c.id).where(delivery_table.c.state.in_(OPEN_STATES))))


def delivery_rows() -> list[Any]:
    """Returns the rows of all deliveries, the one that is due last first."""
    with engine().connect() as connection:
        return list(connection.execute(select(delivery_table).order_by(delivery_table.c.due_at.desc())))


def payloads() -> list[tuple[str | None, str | None]]:
    """Returns the payloads of the emissions, each as snapshot and for reloading."""
    columns = emission_table.c.snapshot, emission_table.c.reload
    with engine().connect() as connection:
        return [tuple(row) for row in connection.execute(select(*columns))]


def delete_all(connection: Connection) -> None:
    """Deletes all deliveries and emissions."""
    for table in (delivery_table, emission_table):
        connection.execute(table.delete())


def make_older(seconds: float) -> None:
    """Makes the due time of each delivery earlier."""
    with write_connection() as connection:
        connection.execute(delivery_table.update().values(due_at=delivery_table.c.due_at - seconds))


def make_overdue(handler: str, seconds: float) -> None:
    """Makes the deliveries to a handler due for longer."""
    with write_connection() as connection:
        of_handler = delivery_table.update().where(delivery_table.c.handler == handler)
        connection.execute(of_handler.values(due_since=delivery_table.c.due_since - seconds))


def age(seconds: float) -> None:
    """Moves the times of all deliveries into the past."""
    columns = delivery_table.c.due_at, delivery_table.c.published_at
    with write_connection() as connection:
        connection.execute(delivery_table.update().values({column: column - seconds for column in columns}))


def expire_now() -> None:
    """Moves the expiry of all deliveries that expire into the past."""
    expiry = delivery_table.c.expires_at
    with write_connection() as connection:
        connection.execute(delivery_table.update().where(expiry.is_not(None)).values(expires_at=1.0))


def expire_in_batches(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Makes a relay close so many expired deliveries at a time."""
    monkeypatch.setattr(pending, "EXPIRY_BATCH", number)


def close_expired() -> int:
    """Makes dead letters of the expired deliveries as a relay does, and returns their number."""
    return pending.close_expired()


def requeue_lost(sizes: Callable[[Iterable[str]], Mapping[str, int]]) -> int:
    """Puts back deliveries whose messages are lost, by these numbers of messages in queues; returns their number."""
    return pending.requeue_lost(sizes)


def replace_payloads(text: str) -> None:
    """Replaces the payload of each emission."""
    with write_connection() as connection:
        connection.execute(emission_table.update().values(snapshot=text))


def start_run(emission: str, handler: str, worker: str = "worker/1-1") -> Claim:
    """Starts a run of a delivery as a worker does, and returns its claim."""
    run = claims.claim(emission, handler, worker)
    assert isinstance(run, Claim), run
    return run


def refused_state(emission: str, handler: str) -> str | None:
    """Returns the state of a delivery that cannot be started, and None if there is no such delivery."""
    refusal = claims.claim(emission, handler, "worker/1-1")
    assert isinstance(refusal, Refusal), refusal
    return refusal.state


def finish(run: Claim) -> None:
    """Closes the delivery of a run as done."""
    claims.finish(run)


def reschedule(run: Claim, seconds: float, error: str) -> None:
    """Puts the delivery of a failed run back for later."""
    claims.reschedule(run, seconds, error)


def requeue_unknown(emission: str, handler: str) -> None:
    """Puts back a delivery whose handler the worker does not know."""
    claims.requeue_unknown(emission, handler, 10, "unknown")


def dead_letter(run: Claim, error: str) -> None:
    """Closes the delivery of a run as a dead letter."""
    claims.dead_letter(run, error)


def park(emission: str, handler: str, task_id: str, facts: dict[str, Any], error: str) -> None:
    """Stores a dead letter of a message without a row."""
    claims.dead_letter_without_row(emission, handler, task_id, facts, error)


def replay(identity: str) -> int:
    """Replays the deliveries with this id, and returns their number."""
    return operations.replay(operations.has_id_in([identity]))


def replay_all() -> int:
    """Replays all closed deliveries, and returns their number."""
    return operations.replay()


def cancel(emission: str) -> int:
    """Cancels the deliveries of an emission that do not run, and returns their number."""
    return operations.cancel(emission)


def emission_trees(emission: str) -> list[EmissionRecord]:
    """Returns an emission with its deliveries and the emissions of its handlers."""
    return history.trees_by_id(emission)


def emissions_by(sender: str, limit: int) -> list[EmissionRecord]:
    """Returns emissions of a sender until now, each with the emissions of its handlers."""
    trees, _ = history.trees_by_sender(sender, datetime.now(UTC), limit)
    return trees


def purge_emissions(before: datetime, limit: int = retention.DELETE_BATCH) -> int:
    """Deletes emissions without deliveries that were emitted before a moment, and returns their number."""
    return retention.purge_emissions(before, limit)


def purge_old(monkeypatch: pytest.MonkeyPatch, older_than: timedelta | None = None) -> int:
    """Runs a worker's deletion of old emissions without its wait for the next one, and returns their number."""
    monkeypatch.setattr(retention, "_last_sweep_at", float("-inf"))
    if older_than is not None:
        monkeypatch.setattr(retention, "RETENTION_PERIOD", older_than)
    return retention.sweep()


def forbid_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when the state of the outbox is read."""
    monkeypatch.setattr(health, "read_health", lambda: pytest.fail("asked"))


def record_worker(name: str) -> None:
    """Records a heartbeat of a worker of that name."""
    ensure_current()
    heartbeat.record_heartbeat("boot", name)


def count_workers() -> int:
    """Returns the number of workers with a row in the table of workers."""
    with engine().connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(worker_table)) or 0)


def check_runs_every(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """Makes a worker compare its runs with the rows so often; returns a list that gets its id at each comparison."""
    checks: list[str] = []
    running = claims.running_attempts

    def record_and_read(worker: str) -> set[tuple[str, int]]:
        checks.append(worker)
        return running(worker)

    monkeypatch.setattr(supervisor, "CHECK_SECONDS", seconds)
    monkeypatch.setattr(claims, "running_attempts", record_and_read)
    return checks
