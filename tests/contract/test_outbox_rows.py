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
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from databases import KINDS, on_database
from nitro.domain.entities.base_entity import Entity
from nitro.errors import OptionNotSerializable
from nitro.infrastructure.database import engine, transaction
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload
from nitro.infrastructure.offload.envelope import ENVELOPE_KEY
from nitro.infrastructure.outbox import operations
from nitro.infrastructure.outbox.schema import deliveries, emissions

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
    written = [
        re.findall(r"INSERT INTO (?:\w+\.)?(\w+)", statement) for statement in statements if "BEGIN" not in statement
    ]
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
    assert len(operations.read_deliveries()) == 1


def registry_in_another_connection() -> list[operations.DeliveryRecord]:
    """What others can see of the outbox at this moment."""
    return operations.read_deliveries()


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
    assert message.kwargs[ENVELOPE_KEY]["emission"] == emission.id
    assert message.kwargs[ENVELOPE_KEY]["payload"] is None
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
    assert len(operations.read_deliveries()) == 1
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
    assert [entry.emission for entry in operations.read_deliveries()] == [kept]


def test_countdown_waits_in_the_row(evt: Event, app: Celery, sent: Sent) -> None:
    """It survives a restart of everything: nothing is in the broker before its time."""
    offloaded(evt, "shop.a", countdown=3600)
    before = datetime.now(UTC)
    emit(evt)
    (entry,) = operations.read_deliveries()
    assert sent() == []
    assert entry.state == "waiting"
    assert entry.due is not None
    assert timedelta(minutes=59) < entry.due - before < timedelta(minutes=61)


def test_queue_of_the_handler_is_kept(evt: Event, app: Celery) -> None:
    """A relay in another process publishes to it; a queue object is kept by its name."""
    offloaded(evt, "shop.a", queue="mail")
    on(evt, offload=Offload(queue=Queue("post")), name="shop.b")(lambda sender: None)
    emit(evt)
    assert {entry.handler: entry.queue for entry in operations.read_deliveries()} == {
        "shop.a": "mail",
        "shop.b": "post",
    }


def test_options_that_are_not_json_are_an_error(evt: Event, app: Celery) -> None:
    """Raised where it is emitted; it names the handler, and nothing is kept."""
    offloaded(evt, "shop.a", headers={"when": datetime.now(UTC)})
    with pytest.raises(OptionNotSerializable, match=r"shop\.a"):
        emit(evt)
    assert operations.read_deliveries() == []


def test_a_rolled_back_row_is_not_published(evt: Event, app: Celery, sent: Sent) -> None:
    """Neither row nor message."""
    offloaded(evt, "shop.a")
    with pytest.raises(ZeroDivisionError), transaction():
        emit(evt, "ada")
        raise ZeroDivisionError
    assert operations.read_deliveries() == []
    with engine().connect() as connection:
        assert connection.execute(select(deliveries)).all() == []
    assert sent() == []
