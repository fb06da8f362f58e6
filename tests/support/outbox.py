"""The outbox: deliveries as records, runs of a worker, the relay, and changes of rows that only a test makes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from nitro.infrastructure.database import engine, write_connection
from nitro.infrastructure.outbox import claims, health, history, inserts, operations, retention
from nitro.infrastructure.outbox.claims import Claim
from nitro.infrastructure.outbox.history import EmissionRecord
from nitro.infrastructure.outbox.operations import DeliveryRecord
from nitro.infrastructure.outbox.relay import Relay
from nitro.infrastructure.outbox.schema import OPEN_STATES
from nitro.infrastructure.outbox.schema import deliveries as delivery_table
from nitro.infrastructure.outbox.schema import emissions as emission_table

__all__ = ["Claim", "DeliveryRecord", "Relay"]


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


def start_run(emission: str, handler: str, worker: str = "worker/1-1") -> Claim:
    """Starts a run of a delivery as a worker does, and returns its claim."""
    run = claims.claim(emission, handler, worker)
    assert isinstance(run, Claim), run
    return run


def finish(run: Claim) -> None:
    """Closes the delivery of a run as done."""
    claims.finish(run)


def dead_letter(run: Claim, error: str) -> None:
    """Closes the delivery of a run as a dead letter."""
    claims.dead_letter(run, error)


def cancel(emission: str) -> int:
    """Cancels the deliveries of an emission that do not run, and returns their number."""
    return operations.cancel(emission)


def emission_trees(emission: str) -> list[EmissionRecord]:
    """Returns an emission with its deliveries and the emissions of its handlers."""
    return history.trees_by_id(emission)


def purge_emissions(before: datetime, limit: int | None = None) -> int:
    """Deletes closed emissions of an earlier time, `limit` at most, and returns their number."""
    return retention.purge_emissions(before, **({} if limit is None else {"limit": limit}))


def refuse_untracked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Makes the database raise an error when an untracked delivery is stored."""
    insert_rows = inserts.insert_deliveries

    def insert_tracked(connection: Any, app: Any, messages: Any, *, queued: bool) -> None:
        if any(not message.is_tracked for message in messages):
            raise error
        insert_rows(connection, app, messages, queued=queued)

    monkeypatch.setattr(inserts, "insert_deliveries", insert_tracked)


def max_age_seconds() -> float:
    """Returns the age at which a due delivery counts as stuck."""
    return health.MAX_AGE_SECONDS


def purge_old(monkeypatch: pytest.MonkeyPatch, older_than: timedelta | None = None) -> int:
    """Runs a worker's deletion of old emissions without its wait for the next one, and returns their number."""
    monkeypatch.setattr(retention, "_last_sweep_at", float("-inf"))
    if older_than is not None:
        monkeypatch.setattr(retention, "RETENTION_PERIOD", older_than)
    return retention.sweep()
