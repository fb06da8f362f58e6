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
"""State of a delivery that a relay publishes as soon as it is due."""
QUEUED: Final = "queued"
"""State of a delivery whose message was published. When `due_at` has passed, a relay checks whether it was lost."""
RUNNING: Final = "running"
"""State of a delivery whose handler a worker has started."""
DONE: Final = "done"
DEAD: Final = "dead"
CANCELLED: Final = "cancelled"

OPEN_STATES: Final = (WAITING, QUEUED, RUNNING)
CLOSED_STATES: Final = (DONE, DEAD, CANCELLED)

MAX_NAME_CHARACTERS = 512
"""Characters that the name of a handler, an event or a queue may have."""


class now(FunctionElement[float]):  # noqa: N801  # reads as the SQL function that it stands for
    """The database's clock at the start of the statement, not of the transaction. Indexes can be searched with it."""

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
    Column("sender", Text, nullable=False, comment="text that monitoring shows"),
    Column("root", String(36)),
    Column("parent", String(36)),
    Column("snapshot", Text, comment="payload, for handlers with entity=snapshot"),
    Column("reload", Text, comment="payload, for handlers with entity=reload"),
    Column("story", Text, comment="JSON: outcomes of its inline handlers"),
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
    Column("due_at", Double, nullable=False, comment="when a relay checks it next"),
    Column("expires_at", Double),
    Column("attempts", Integer, nullable=False, server_default="0", comment="runs started; the latest may close it"),
    Column("retries", Integer, nullable=False, server_default="0", comment="runs that failed and were rescheduled"),
    Column("losses", Integer, nullable=False, server_default="0", comment="runs whose process died"),
    Column("publications", Integer, nullable=False, server_default="0"),
    Column("published_at", Double),
    Column("started_at", Double),
    Column("closed_at", Double),
    # Float, not Double: its name is the same in each database, so one ALTER TABLE upgrades the tables of all.
    Column("replayed_at", Float, comment="when it was last replayed"),
    Column("due_since", Float, comment="when it became due; leases and publications do not change it"),
    Column("worker", String(64), comment="id of the worker that runs it, and its process and thread"),
    Column("error", Text),
    Column("history", Text, comment="a JSON object a line: the first of its runs that did not close it"),
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
"""The condition for dead letters. `literal_execute` writes the state into the SQL, so that the index is used."""
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
    """Returns a lower bound of the ids of emissions from that moment on: UUIDv7 sorts by time (RFC 9562)."""
    milliseconds = f"{int(moment.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}"


def time_of_id(identity: str) -> datetime:
    """Returns the time at which the id of an emission was made; 1970 for an id from a message that is no UUIDv7."""
    try:
        return datetime.fromtimestamp((UUID(identity).int >> 80) / 1000, UTC)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)


def is_unlocked(*conditions: ColumnElement[bool], limit: int | None = None) -> ColumnElement[bool]:
    """Returns the condition for deliveries that meet the conditions and that no other transaction has locked.

    `SKIP LOCKED` keeps a worker that is frozen inside a transaction from blocking the statement.

    Args:
        limit: number of deliveries at most.
    """
    key = (deliveries.c.emission, deliveries.c.handler)
    return tuple_(*key).in_(select(*key).where(*conditions).limit(limit).with_for_update(skip_locked=True))


def is_open(state: State) -> ColumnElement[bool]:
    """Returns the condition for deliveries in this open state; it uses the index of open deliveries."""
    return deliveries.c.closed_at.is_(None) & (deliveries.c.state == state)


def is_dead() -> ColumnElement[bool]:
    """Returns the condition for dead letters; it uses their index."""
    return _is_dead


workers = Table(
    "nitro_worker",
    nitro_metadata,
    Column("boot", String(36), primary_key=True),
    Column("name", String(MAX_NAME_CHARACTERS), nullable=False, comment="Celery's node name"),
    Column("beat", BigInteger, nullable=False, comment="counts up while the worker runs"),
)

schema_versions = Table(
    "nitro_schema",
    nitro_metadata,
    Column("version", SmallInteger, primary_key=True, comment="version of these tables"),
    Column(
        "usable_from",
        SmallInteger,
        nullable=False,
        server_default="4",
        comment="the oldest version whose library can use them",
    ),
)
