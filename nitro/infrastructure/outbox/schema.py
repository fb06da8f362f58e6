"""The tables of the outbox. Times are seconds since 1970 by the database's own clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Double,
    Float,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    literal,
    select,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from nitro.infrastructure.database import nitro_metadata

State = Literal["waiting", "queued", "running", "done", "dead", "cancelled"]

WAITING: Final = "waiting"
"""To be published as soon as it is due."""
QUEUED: Final = "queued"
"""Handed to the broker, as far as anyone knows; looked after when it is due again."""
RUNNING: Final = "running"
"""A worker has started its handler."""
DONE: Final = "done"
DEAD: Final = "dead"
CANCELLED: Final = "cancelled"

OPEN_STATES: Final = (WAITING, QUEUED, RUNNING)
CLOSED_STATES: Final = (DONE, DEAD, CANCELLED)

MAX_NAME_CHARACTERS = 512
"""Characters of the name of a handler, an event or a queue."""


class now(FunctionElement[float]):  # noqa: N801  # reads as the SQL function that it stands for
    """The database's clock when the statement began, not the transaction; an index can be asked with it."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_on_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now)
def _now(*_: Any, **__: Any) -> str:
    return "EXTRACT(EPOCH FROM statement_timestamp())::double precision"


emissions = Table(
    "nitro_emission",
    nitro_metadata,
    Column("id", String(36), primary_key=True, comment="UUIDv7, so that it sorts by time"),
    Column("event", String(MAX_NAME_CHARACTERS)),
    Column("sender", Text, nullable=False, comment="what monitoring shows"),
    Column("root", String(36)),
    Column("parent", String(36)),
    Column("snapshot", Text, comment="payload, for handlers that want entities as they were"),
    Column("reload", Text, comment="payload, for handlers that read entities again"),
    Column("story", Text, comment="JSON: what became of its inline handlers"),
)

deliveries = Table(
    "nitro_delivery",
    nitro_metadata,
    Column("emission", String(36), ForeignKey("nitro_emission.id"), primary_key=True),
    Column("handler", String(MAX_NAME_CHARACTERS), primary_key=True),
    Column("id", String(36), nullable=False, comment="Celery task id and idempotency key"),
    Column("promise", String(16), nullable=False, comment="delivery= of its handler"),
    Column("mode", String(8), nullable=False, comment="entity= of its handler: which payload"),
    Column("queue", String(MAX_NAME_CHARACTERS), nullable=False),
    Column("options", Text, comment="JSON: options of the message"),
    Column("state", String(9), nullable=False),
    Column("due_at", Double, nullable=False, comment="when a relay looks at it next"),
    Column("expires_at", Double),
    Column("attempts", Integer, nullable=False, server_default="0", comment="runs started; which one may close it"),
    Column("retries", Integer, nullable=False, server_default="0", comment="runs that failed and were put off"),
    Column("losses", Integer, nullable=False, server_default="0", comment="runs whose process died"),
    Column("publications", Integer, nullable=False, server_default="0"),
    Column("published_at", Double),
    Column("started_at", Double),
    Column("closed_at", Double),
    # Not Double, which has another name in each database: older tables get it by one and the same statement.
    Column("replayed_at", Float, comment="when it was last made to run again after it was closed"),
    Column("due_since", Float, comment="since when it should run; no lease and no publication moves it"),
    Column("worker", String(64), comment="boot id of the worker that runs it, and its process"),
    Column("error", Text),
    Column("history", Text, comment="a JSON object a line: its runs that did not close it, the first ones"),
)

Index(
    "ix_nitro_delivery_open",
    deliveries.c.state,
    deliveries.c.due_at,
    deliveries.c.emission,
    sqlite_where=deliveries.c.closed_at.is_(None),
    postgresql_where=deliveries.c.closed_at.is_(None),
)

_is_expiring = deliveries.c.closed_at.is_(None) & deliveries.c.expires_at.is_not(None)
Index("ix_nitro_delivery_expiring", deliveries.c.expires_at, sqlite_where=_is_expiring, postgresql_where=_is_expiring)

_is_dead = deliveries.c.state == literal(DEAD, literal_execute=True)
"""With the word itself in the statement, from which a database sees that the index of dead ones will do."""
Index("ix_nitro_delivery_dead", deliveries.c.emission, sqlite_where=_is_dead, postgresql_where=_is_dead)

_is_replayed = deliveries.c.replayed_at.is_not(None)
Index(
    "ix_nitro_delivery_replayed",
    deliveries.c.replayed_at,
    sqlite_where=_is_replayed,
    postgresql_where=_is_replayed,
)

_is_closed = deliveries.c.closed_at.is_not(None)
Index("ix_nitro_delivery_closed", deliveries.c.closed_at, sqlite_where=_is_closed, postgresql_where=_is_closed)

_has_root = emissions.c.root.is_not(None)
Index("ix_nitro_emission_root", emissions.c.root, sqlite_where=_has_root, postgresql_where=_has_root)


def min_id_at(moment: datetime) -> str:
    """What every id of an emission of that moment or later is not less than: UUIDv7 sorts by time (RFC 9562)."""
    milliseconds = f"{int(moment.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}"


def time_of_id(identity: str) -> datetime:
    """When an id of an emission was made; one that is no UUIDv7, as a message may name, in 1970."""
    try:
        return datetime.fromtimestamp((UUID(identity).int >> 80) / 1000, UTC)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)


def is_unlocked(*conditions: ColumnElement[bool], most: int | None = None) -> ColumnElement[bool]:
    """Deliveries that meet the conditions and that no transaction holds, be it one of a worker that is frozen in it.

    Args:
        most: so many of them.
    """
    key = (deliveries.c.emission, deliveries.c.handler)
    return tuple_(*key).in_(select(*key).where(*conditions).limit(most).with_for_update(skip_locked=True))


def is_open(state: State) -> ColumnElement[bool]:
    """Deliveries in this state, found by the index of open ones."""
    return deliveries.c.closed_at.is_(None) & (deliveries.c.state == state)


def is_dead() -> ColumnElement[bool]:
    """Dead letters, found by their index."""
    return _is_dead


workers = Table(
    "nitro_worker",
    nitro_metadata,
    Column("boot", String(36), primary_key=True),
    Column("name", String(MAX_NAME_CHARACTERS), nullable=False, comment="Celery's node name"),
    Column("beat", BigInteger, nullable=False, comment="counts up while it lives"),
)

schema_versions = Table(
    "nitro_schema",
    nitro_metadata,
    Column("version", SmallInteger, primary_key=True, comment="of these tables"),
    Column(
        "usable_from",
        SmallInteger,
        nullable=False,
        server_default="4",
        comment="the oldest version whose library can use them",
    ),
)
