"""Inserts: an emission and its deliveries are written by two INSERTs, which on PostgreSQL are one statement."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from celery import Celery
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Executable,
    Insert,
    Table,
    bindparam,
    case,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from nitro.infrastructure.offload.parcel import Parcel
from nitro.infrastructure.outbox.rows import delivery_row, due_after, emission_row
from nitro.infrastructure.outbox.tables import deliveries, emissions, now

GIVEN = ("emission", "handler", "id", "promise", "mode", "queue", "options", "state", "publications")
"""Columns that have their values from `delivery_row`."""
RECKONED = {"at_once": Boolean(), "put_off": Double(), "ends_at": Double(), "ends_after": Double()}
"""Values of `delivery_row` that the times are made of."""

_INSERT: dict[str, Callable[[Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert(connection: Connection, app: Celery, parcels: Sequence[Parcel], *, queued: bool) -> None:
    """Write the emission of these parcels, which may be there already, and a delivery for each.

    Raises:
        OptionStays: an option of a message is not JSON.
    """
    emission = emission_row(parcels)
    rows = [delivery_row(app, parcel, queued) for parcel in parcels]
    if connection.dialect.name == "postgresql":
        connection.execute(_at_once(), {**emission, "rows": json.dumps(rows)})
    else:
        first, second = _one_by_one(connection.dialect.name)
        connection.execute(first, emission)
        connection.execute(second, rows)


@cache
def _at_once() -> Insert:
    """Both in one round trip: of the bare time of two, most is spent on the way and between them."""
    columns = [Column(name, deliveries.c[name].type) for name in GIVEN]
    columns += [Column(name, type_) for name, type_ in RECKONED.items()]
    given = func.json_to_recordset(bindparam("rows").op("::")(literal_column("json")))
    rows = given.table_valued(*columns).render_derived(name="given", with_types=True)
    times = _times(rows.c)
    values = select(*(rows.c[name] for name in GIVEN), *times.values()).where(true())
    delivery: Insert = _INSERT["postgresql"](deliveries).from_select([*GIVEN, *times], values).on_conflict_do_nothing()
    return delivery.add_cte(_emission("postgresql").cte("emission"))


@cache
def _one_by_one(dialect: str) -> tuple[Executable, Executable]:
    """Made once, because making them costs more than an order does."""
    given = {name: bindparam(name, type_=type_) for name, type_ in RECKONED.items()}
    return _emission(dialect), _INSERT[dialect](deliveries).values(_times(given)).on_conflict_do_nothing()


def _emission(dialect: str) -> Any:
    emission = _INSERT[dialect](emissions)
    both = {name: func.coalesce(emissions.c[name], emission.excluded[name]) for name in ("snapshot", "reload")}
    values = {column.name: bindparam(column.name, type_=column.type) for column in emissions.c}
    return emission.values(values).on_conflict_do_update(index_elements=["id"], set_=both)


def _times(given: Any) -> dict[str, ColumnElement[Any]]:
    return {
        "due_at": due_after(given["put_off"]),
        "expires_at": func.coalesce(given["ends_at"], now() + given["ends_after"]),
        "published_at": case((given["at_once"], now())),
    }
