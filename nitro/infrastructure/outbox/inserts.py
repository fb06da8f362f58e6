"""Inserts: an emission and its deliveries are written by two INSERTs, which on PostgreSQL are one statement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from celery import Celery
from pydantic_core import to_json
from sqlalchemy import Boolean, ColumnElement, Connection, Double, Table, bindparam, case, func, select, true
from sqlalchemy.dialects import postgresql, sqlite

from nitro.infrastructure.database import Prepared
from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.outbox.given import given
from nitro.infrastructure.outbox.rows import delivery_rows, emission_row
from nitro.infrastructure.outbox.states import due_after
from nitro.infrastructure.outbox.tables import deliveries, emissions, now
from nitro.infrastructure.outbox.texts import check_names

KEPT = ("emission", "handler", "id", "promise", "mode", "queue", "options", "state", "publications")
"""Values of `delivery_rows` that are columns."""
RECKONED = {"at_once": Boolean(), "put_off": Double(), "ends_at": Double(), "ends_after": Double()}
"""Values of `delivery_rows` that the times are made of."""

INSERT: dict[str, Callable[[Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert(connection: Connection, app: Celery, parcels: Sequence[Parcel], *, queued: bool) -> None:
    """Write the emission of these parcels, which may be there already, and a delivery for each.

    Raises:
        DeclarationError: the database cannot store the name of the event, of a handler or of a queue.
        OptionNotSerializable: an option of a message is not JSON.
    """
    rows, emission = delivery_rows(app, parcels, queued), emission_row(parcels)
    check_names(chain([emission["event"]], (row[name] for row in rows for name in ("handler", "queue"))))
    values = {**emission, "rows": to_json(rows).decode()}
    for statement in STATEMENTS[connection.dialect.name]:
        statement.execute(connection, values)


def _emission(dialect: str) -> Any:
    emission = INSERT[dialect](emissions)
    both = {name: func.coalesce(emissions.c[name], emission.excluded[name]) for name in ("snapshot", "reload")}
    values = {column.name: bindparam(column.name, type_=column.type) for column in emissions.c}
    return emission.values(values).on_conflict_do_update(index_elements=["id"], set_=both)


def _delivery(dialect: str) -> Any:
    columns = {**{name: deliveries.c[name].type for name in KEPT}, **RECKONED}
    row = given(dialect, bindparam("rows"), columns).c
    times = {
        "due_at": due_after(row.put_off),
        "expires_at": func.coalesce(row.ends_at, now() + row.ends_after),
        "published_at": case((row.at_once, now())),
        "due_since": case((row.at_once, now()), else_=now() + row.put_off),
    }
    values: list[ColumnElement[Any]] = [*(row[name] for name in KEPT), *times.values()]
    rows = select(*values).where(true())  # without WHERE SQLite takes ON CONFLICT for that of a join
    return INSERT[dialect](deliveries).from_select([*KEPT, *times], rows).on_conflict_do_nothing()


def _both(dialect: str) -> Any:
    return _delivery(dialect).add_cte(_emission(dialect).cte("emission"))


STATEMENTS = {"postgresql": (Prepared(_both),), "sqlite": (Prepared(_emission), Prepared(_delivery))}
"""What `insert` executes; one where one can be both."""
