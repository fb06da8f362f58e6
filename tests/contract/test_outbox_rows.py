"""What an emit writes into the outbox, and when: contract section 7."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Queue
from sqlalchemy import event, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import SQLModel

from databases import KINDS, on_database
from nitro.domain.entities.base_entity import Entity
from nitro.errors import OptionStays, OutboxOutdated
from nitro.infrastructure.database import create_tables, engine, reset, transaction, writing
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload, bind
from nitro.infrastructure.offload.message import KEY
from nitro.infrastructure.outbox import registry, versions
from nitro.infrastructure.outbox.tables import deliveries, emissions, schema

Sent = Callable[..., list[Any]]
SKEW = 1.0
"""Seconds between the clocks of this process and of a database."""


class Cargo(Entity, table=True):
    """Something to emit about."""

    __tablename__ = "outbox_cargo"

    status: str = "draft"


def offloaded(evt: Event, *names: str, **options: Any) -> None:
    """Connect an offloaded handler of each name."""
    for name in names:
        on(evt, offload=options or True, name=name)(lambda sender, **kwargs: None)


@pytest.fixture
def statements(app: Celery) -> Iterator[list[str]]:
    """The SQL that is executed, but for what begins and ends transactions."""
    executed: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        executed.append(statement)

    event.listen(engine(), "before_cursor_execute", note)
    yield executed
    event.remove(engine(), "before_cursor_execute", note)


def payloads() -> list[tuple[str | None, str | None]]:
    """The two payloads of each emission."""
    with engine().connect() as connection:
        found = connection.execute(select(emissions.c.snapshot, emissions.c.reload))
        return [(row.snapshot, row.reload) for row in found]


INSERTS = {"sqlite": [["nitro_emission"], ["nitro_delivery"]], "postgresql": [["nitro_emission", "nitro_delivery"]]}
"""The tables that each statement writes to."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handlers", [1, 5])
def test_an_emission_is_two_inserts(
    evt: Event, app: Celery, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, handlers: int, kind: str
) -> None:
    """However many handlers there are: one for the payload, one for the deliveries; on PostgreSQL in one statement."""
    on_database(request, monkeypatch, kind)
    offloaded(evt, *(f"shop.{number}" for number in range(handlers)))
    emit(evt, "ada")
    statements = request.getfixturevalue("statements")
    emit(evt, "bob")
    written = [re.findall(r"INSERT INTO (\w+)", statement) for statement in statements if "BEGIN" not in statement]
    assert written == INSERTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_holds_all_that_its_message_needs(
    evt: Event, app: Celery, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On every database: when it is due, until when, how it travels; a name may have any character."""
    on_database(request, monkeypatch, kind)
    offloaded(evt, "shop.böse\"'%s:name", entity="reload", queue="mail", countdown=60, expires=90.5, priority=3)
    offloaded(evt, "shop.plain")
    began = time.time()
    emit(evt, 'a "quoted" %s sender')
    ended = time.time()
    with engine().connect() as connection:
        put_off, plain = connection.execute(select(deliveries).order_by(deliveries.c.due_at.desc())).all()
    assert (put_off.handler, put_off.mode, put_off.queue) == ("shop.böse\"'%s:name", "reload", "mail")
    assert json.loads(put_off.options) == {"queue": "mail", "priority": 3}
    assert (put_off.state, put_off.publications, put_off.published_at) == ("waiting", 0, None)
    assert began + 60 - SKEW <= put_off.due_at <= ended + 60 + SKEW
    assert began + 90.5 - SKEW <= put_off.expires_at <= ended + 90.5 + SKEW
    assert (plain.handler, plain.mode, plain.options, plain.expires_at) == ("shop.plain", "snapshot", None, None)
    assert (plain.state, plain.publications) == ("queued", 1)
    assert began - SKEW <= plain.published_at <= ended + SKEW
    assert plain.due_at > plain.published_at
    assert [bool(payload) for payload in payloads()[0]] == [True, True]


def test_an_emit_in_a_transaction_commits_with_it(evt: Event, app: Celery, statements: list[str]) -> None:
    """No transaction of its own: the rows are in the user's."""
    offloaded(evt, "shop.a")
    with transaction():
        emit(evt, Cargo(id="c1").save())
        assert registry_in_another_connection() == []
    assert len(registry.entries()) == 1


def registry_in_another_connection() -> list[registry.Entry]:
    """What others can see of the outbox at this moment."""
    return registry.entries()


def test_payload_is_stored_once(evt: Event, app: Celery) -> None:
    """Not once a handler."""
    offloaded(evt, "shop.a", "shop.b")
    emit(evt, "ada", text="x" * 100)
    ((snapshot, reload),) = payloads()
    assert snapshot is not None
    assert snapshot.count("x" * 100) == 1
    assert reload is None


def test_each_mode_has_its_payload(evt: Event, app: Celery) -> None:
    """A handler that reads its entities again gets another payload than one that wants them as they were."""
    offloaded(evt, "shop.a")
    offloaded(evt, "shop.b", entity="reload")
    emit(evt, Cargo(id="c1", status="placed").save())
    ((snapshot, reload),) = payloads()
    assert "placed" in str(snapshot)
    assert "placed" not in str(reload)
    assert "c1" in str(reload)


def test_message_of_a_tracked_delivery_carries_no_payload(evt: Event, app: Celery, sent: Sent) -> None:
    """Nothing personal is in the broker; the row's identity is."""
    offloaded(evt, "shop.a")
    emission = emit(evt, "ada", email="alice@example.com")
    (message,) = sent()
    assert message.kwargs[KEY]["emission"] == emission.id
    assert message.kwargs[KEY]["payload"] is None
    assert "alice" not in json.dumps([message.kwargs, message.headers])


@pytest.mark.parametrize("delivery", ["broker", "at-most-once"])
def test_untracked_deliveries_need_no_database(
    evt: Event, app: Celery, sent: Sent, statements: list[str], delivery: str
) -> None:
    """While the broker answers."""
    offloaded(evt, "shop.a", delivery=delivery)
    emit(evt, "ada")
    assert len(sent()) == 1
    assert statements == []


def test_an_async_session_commits_the_rows(
    evt: Event, app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written as the last thing in its transaction; after a rollback there are none."""
    offloaded(evt, "shop.a")
    Cargo.init_db()
    database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'nitro.db'}")

    async def main() -> None:
        async with AsyncSession(database) as session:
            async with transaction(session):
                session.add(Cargo(id="kept"))
                emit(evt, "kept")
            with pytest.raises(ZeroDivisionError):
                async with transaction(session):
                    emit(evt, "dropped")
                    raise ZeroDivisionError
        await database.dispose()

    asyncio.run(main())
    assert len(registry.entries()) == 1
    assert Cargo.exists("kept")


def test_a_savepoint_of_an_async_session_takes_its_rows(evt: Event, app: Celery, tmp_path: Path) -> None:
    """Only what the inner block has emitted is gone."""
    offloaded(evt, "shop.a")
    Cargo.init_db()
    database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'nitro.db'}")

    async def main() -> str:
        async with AsyncSession(database) as session, transaction(session):
            session.add(Cargo(id="kept"))
            kept = emit(evt, "kept")
            with pytest.raises(ZeroDivisionError):
                async with transaction(session):
                    emit(evt, "dropped")
                    raise ZeroDivisionError
        await database.dispose()
        return kept.id

    kept = asyncio.run(main())
    assert [entry.emission for entry in registry.entries()] == [kept]


def test_countdown_waits_in_the_row(evt: Event, app: Celery, sent: Sent) -> None:
    """It survives a restart of everything: nothing is in the broker before its time."""
    offloaded(evt, "shop.a", countdown=3600)
    before = datetime.now(UTC)
    emit(evt)
    (entry,) = registry.entries()
    assert sent() == []
    assert entry.state == "waiting"
    assert entry.due is not None
    assert timedelta(minutes=59) < entry.due - before < timedelta(minutes=61)


def test_queue_of_the_handler_is_kept(evt: Event, app: Celery) -> None:
    """A relay in another process publishes to it; a queue object is kept by its name."""
    offloaded(evt, "shop.a", queue="mail")
    on(evt, offload=Offload(queue=Queue("post")), name="shop.b")(lambda sender: None)
    emit(evt)
    assert {entry.handler: entry.queue for entry in registry.entries()} == {"shop.a": "mail", "shop.b": "post"}


def test_options_that_are_not_json_are_an_error(evt: Event, app: Celery) -> None:
    """Raised where it is emitted; it names the handler, and nothing is kept."""
    offloaded(evt, "shop.a", headers={"when": datetime.now(UTC)})
    with pytest.raises(OptionStays, match=r"shop\.a"):
        emit(evt)
    assert registry.entries() == []


def test_tables_of_another_version_are_refused(evt: Event, app: Celery) -> None:
    """A library that is too old for the database says so, and what to do."""
    offloaded(evt, "shop.a")
    emit(evt)
    with writing() as connection:
        connection.execute(schema.update().values(version=versions.VERSION + 1))
    reset()
    with pytest.raises(OutboxOutdated, match="update the library"):
        emit(evt)


def test_tables_of_an_older_version_are_brought_up_to_date(
    evt: Event, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step, keeping what is in them; on SQLite by itself."""
    offloaded(evt, "shop.a")
    first = emit(evt)
    later = versions.VERSION + 2
    monkeypatch.setattr(versions, "VERSION", later)
    steps = {later - 1: ("ALTER TABLE nitro_worker ADD note TEXT",), later: ("UPDATE nitro_worker SET note = 'x'",)}
    monkeypatch.setattr(versions, "STEPS", steps)
    reset()
    second = emit(evt)
    with engine().connect() as connection:
        assert connection.scalar(select(schema.c.version)) == later
        connection.exec_driver_sql("SELECT note FROM nitro_worker")
    assert {entry.emission for entry in registry.entries()} == {first.id, second.id}


BACK = (
    "DROP INDEX ix_nitro_delivery_open",
    "CREATE INDEX ix_nitro_delivery_open ON nitro_delivery (state, due_at)",
    "DROP INDEX ix_nitro_emission_root",
    "DROP INDEX ix_nitro_delivery_dead",
    "ALTER TABLE nitro_emission DROP COLUMN story",
    "ALTER TABLE nitro_delivery DROP COLUMN history",
    "DROP INDEX ix_nitro_delivery_replayed",
    "ALTER TABLE nitro_delivery DROP COLUMN replayed_at",
    "DROP INDEX ix_nitro_delivery_closed",
    "ALTER TABLE nitro_delivery DROP COLUMN due_since",
    "UPDATE nitro_schema SET version = 1",
)
"""What makes tables of the first version of those of this one."""


def shape() -> Any:
    """The columns and indexes of the outbox's tables."""
    seen = inspect(engine())
    tables = [name for name in seen.get_table_names() if name.startswith("nitro_")]
    columns = {(table, column["name"]): str(column["type"]) for table in tables for column in seen.get_columns(table)}
    indexes = {(table, each["name"]): each["column_names"] for table in tables for each in seen.get_indexes(table)}
    return columns, indexes


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_the_first_version_become_those_of_this_one(
    evt: Event, app: Celery, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On a server by `nitro init`, which does this."""
    on_database(request, monkeypatch, kind)
    create_tables()
    wanted = shape()
    with writing() as connection:
        for statement in BACK:
            connection.exec_driver_sql(statement)
    assert shape() != wanted
    reset()
    create_tables()
    assert shape() == wanted


@pytest.mark.server
def test_a_server_database_without_tables_names_the_way_out(
    evt: Event, make_app: Callable[..., Celery], database_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made by `celery -A tasks nitro init`, not behind the back of its owner."""
    monkeypatch.setenv("NITRO_DB_URL", database_server)
    reset()
    SQLModel.metadata.drop_all(engine())
    bind(make_app())
    offloaded(evt, "shop.a")
    with pytest.raises(OutboxOutdated, match="nitro init"):
        emit(evt)


def test_a_rolled_back_row_is_not_published(evt: Event, app: Celery, sent: Sent) -> None:
    """Neither row nor message."""
    offloaded(evt, "shop.a")
    with pytest.raises(ZeroDivisionError), transaction():
        emit(evt, "ada")
        raise ZeroDivisionError
    assert registry.entries() == []
    with engine().connect() as connection:
        assert connection.execute(select(deliveries)).all() == []
    assert sent() == []
