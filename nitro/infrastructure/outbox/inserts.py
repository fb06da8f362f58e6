"""Inserts an emission and its deliveries by two INSERTs, which are one statement on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from celery import Celery
from pydantic_core import to_json
from sqlalchemy import Boolean, ColumnElement, Connection, Double, Table, bindparam, case, func, select, true
from sqlalchemy.dialects import postgresql, sqlite

from nitro.infrastructure.database import CachedStatement
from nitro.infrastructure.offload.envelope import TaskMessage
from nitro.infrastructure.outbox.rows import delivery_rows, emission_row, json_rows
from nitro.infrastructure.outbox.schema import deliveries, emissions, now
from nitro.infrastructure.outbox.states import due_after
from nitro.infrastructure.outbox.texts import check_names

STORED_COLUMNS = ("emission", "handler", "id", "promise", "mode", "queue", "options", "state", "publications")
"""Values of `delivery_rows` that are stored as they are."""
TIME_INPUTS = {"publish_now": Boolean(), "delay": Double(), "expires_at": Double(), "expires_in": Double()}
"""Values of `delivery_rows` from which the database computes the times."""

INSERT_BY_DIALECT: dict[str, Callable[[Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert_deliveries(connection: Connection, app: Celery, messages: Sequence[TaskMessage], *, queued: bool) -> None:
    """Writes the emission of these messages, unless it is there already, and a delivery for each message.

    Raises:
        DeclarationError: the database cannot store the name of the event, of a handler or of a queue.
        OptionNotSerializable: an option of a message is not JSON.
    """
    rows, emission = delivery_rows(app, messages, queued), emission_row(messages)
    check_names(chain([emission["event"]], (row[name] for row in rows for name in ("handler", "queue"))))
    values = {**emission, "rows": to_json(rows).decode()}
    for statement in INSERT_STATEMENTS[connection.dialect.name]:
        statement.execute(connection, values)


def _emission_insert(dialect: str) -> Any:
    emission = INSERT_BY_DIALECT[dialect](emissions)
    payloads = {name: func.coalesce(emissions.c[name], emission.excluded[name]) for name in ("snapshot", "reload")}
    values = {column.name: bindparam(column.name, type_=column.type) for column in emissions.c}
    return emission.values(values).on_conflict_do_update(index_elements=["id"], set_=payloads)


def _delivery_insert(dialect: str) -> Any:
    columns = {**{name: deliveries.c[name].type for name in STORED_COLUMNS}, **TIME_INPUTS}
    row = json_rows(dialect, bindparam("rows"), columns).c
    times = {
        "due_at": due_after(row.delay),
        "expires_at": func.coalesce(row.expires_at, now() + row.expires_in),
        "published_at": case((row.publish_now, now())),
        "due_since": case((row.publish_now, now()), else_=now() + row.delay),
    }
    values: list[ColumnElement[Any]] = [*(row[name] for name in STORED_COLUMNS), *times.values()]
    rows = select(*values).where(true())  # without WHERE SQLite reads ON CONFLICT as the ON of a join
    return INSERT_BY_DIALECT[dialect](deliveries).from_select([*STORED_COLUMNS, *times], rows).on_conflict_do_nothing()


def _combined_insert(dialect: str) -> Any:
    return _delivery_insert(dialect).add_cte(_emission_insert(dialect).cte("emission"))


INSERT_STATEMENTS = {
    "postgresql": (CachedStatement(_combined_insert),),
    "sqlite": (CachedStatement(_emission_insert), CachedStatement(_delivery_insert)),
}
"""The statements of `insert_deliveries`, by dialect."""
