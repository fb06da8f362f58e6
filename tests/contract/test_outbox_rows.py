"""Rows of the outbox, as an emit writes them: contract section 7."""

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
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from nitro.domain.entities.base_entity import Entity
from nitro.errors import OptionNotSerializable
from nitro.infrastructure.database import engine, transaction
from nitro.infrastructure.events import Event, emit, on
from nitro.infrastructure.offload import Offload
from support import outbox
from support.broker import ENVELOPE_KEY
from support.databases import KINDS, on_database

Sent = Callable[..., list[Any]]
SKEW = 1.0
"""Seconds between the clocks of this process and of a database."""


class Cargo(Entity, table=True):
    """An entity to emit about."""

    __tablename__ = "outbox_cargo"

    status: str = "draft"


def offloaded(evt: Event, *names: str, **options: Any) -> None:
    """Connects an offloaded handler under each name."""
    for name in names:
        on(evt, offload=options or True, name=name)(lambda sender, **kwargs: None)


@pytest.fixture
def statements(app: Celery) -> Iterator[list[str]]:
    """The executed SQL statements, without the begin and the end of transactions."""
    executed: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        executed.append(statement)

    event.listen(engine(), "before_cursor_execute", record)
    yield executed
    event.remove(engine(), "before_cursor_execute", record)


INSERTS = {"sqlite": [["nitro_emission"], ["nitro_delivery"]], "postgresql": [["nitro_emission", "nitro_delivery"]]}
"""The tables that each statement writes to."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handlers", [1, 5])
def test_an_emission_is_two_inserts(
    evt: Event, app: Celery, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, handlers: int, kind: str
) -> None:
    """An emission inserts its payload once and all deliveries at once; PostgreSQL needs a single statement."""
    on_database(request, monkeypatch, kind)
    offloaded(evt, *(f"shop.{number}" for number in range(handlers)))
    emit(evt, "ada")
    statements = request.getfixturevalue("statements")
    emit(evt, "bob")
    tables = [
        re.findall(r"INSERT INTO (?:\w+\.)?(\w+)", statement) for statement in statements if "BEGIN" not in statement
    ]
    assert tables == INSERTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_holds_all_that_its_message_needs(
    evt: Event, app: Celery, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A row has due time, expiry, mode and options on every database; a handler name may contain any character."""
    on_database(request, monkeypatch, kind)
    offloaded(evt, "shop.böse\"'%s:name", entity="reload", queue="mail", countdown=60, expires=90.5, priority=3)
    offloaded(evt, "shop.plain")
    begin = time.time()
    emit(evt, 'a "quoted" %s sender')
    end = time.time()
    delayed, plain = outbox.delivery_rows()
    assert (delayed.handler, delayed.mode, delayed.queue) == ("shop.böse\"'%s:name", "reload", "mail")
    assert json.loads(delayed.options) == {"queue": "mail", "priority": 3}
    assert (delayed.state, delayed.publications, delayed.published_at) == ("waiting", 0, None)
    assert begin + 60 - SKEW <= delayed.due_at <= end + 60 + SKEW
    assert begin + 90.5 - SKEW <= delayed.expires_at <= end + 90.5 + SKEW
    assert (plain.handler, plain.mode, plain.options, plain.expires_at) == ("shop.plain", "snapshot", None, None)
    assert (plain.state, plain.publications) == ("queued", 1)
    assert begin - SKEW <= plain.published_at <= end + SKEW
    assert plain.due_at > plain.published_at
    assert [bool(payload) for payload in outbox.payloads()[0]] == [True, True]


def test_an_emit_in_a_transaction_commits_with_it(evt: Event, app: Celery, statements: list[str]) -> None:
    """The rows of an emit are in the user's transaction, and invisible outside before its commit."""
    offloaded(evt, "shop.a")
    with transaction():
        emit(evt, Cargo(id="c1").save())
        assert committed_rows() == []
    assert len(outbox.deliveries()) == 1


def committed_rows() -> list[outbox.DeliveryRecord]:
    """Returns the committed rows of the outbox."""
    return outbox.deliveries()


def test_payload_is_stored_once(evt: Event, app: Celery) -> None:
    """The payload is stored once for all handlers of an emission."""
    offloaded(evt, "shop.a", "shop.b")
    emit(evt, "ada", text="x" * 100)
    ((snapshot, reload),) = outbox.payloads()
    assert snapshot is not None
    assert snapshot.count("x" * 100) == 1
    assert reload is None


def test_each_mode_has_its_payload(evt: Event, app: Celery) -> None:
    """A handler with `entity="reload"` gets another payload than a handler with `entity="snapshot"`."""
    offloaded(evt, "shop.a")
    offloaded(evt, "shop.b", entity="reload")
    emit(evt, Cargo(id="c1", status="placed").save())
    ((snapshot, reload),) = outbox.payloads()
    assert "placed" in str(snapshot)
    assert "placed" not in str(reload)
    assert "c1" in str(reload)


def test_message_of_a_tracked_delivery_carries_no_payload(evt: Event, app: Celery, sent: Sent) -> None:
    """The message of a tracked delivery carries the emission's id and no payload."""
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
    """Untracked deliveries execute no SQL while the broker answers."""
    offloaded(evt, "shop.a", delivery=delivery)
    emit(evt, "ada")
    assert len(sent()) == 1
    assert statements == []


def test_an_async_session_commits_the_rows(
    evt: Event, app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are committed with an async session's transaction; its rollback leaves none."""
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
    assert len(outbox.deliveries()) == 1
    assert Cargo.exists("kept")


def test_a_savepoint_of_an_async_session_takes_its_rows(evt: Event, app: Celery, tmp_path: Path) -> None:
    """A rolled-back savepoint of an async session drops only its own rows."""
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
    assert [entry.emission for entry in outbox.deliveries()] == [kept]


def test_countdown_waits_in_the_row(evt: Event, app: Celery, sent: Sent) -> None:
    """A delivery with a countdown waits in its row; no message is in the broker before it is due."""
    offloaded(evt, "shop.a", countdown=3600)
    before = datetime.now(UTC)
    emit(evt)
    entry = outbox.delivery()
    assert sent() == []
    assert entry.state == "waiting"
    assert entry.due is not None
    assert timedelta(minutes=59) < entry.due - before < timedelta(minutes=61)


def test_queue_of_the_handler_is_kept(evt: Event, app: Celery) -> None:
    """The row keeps the handler's queue, and of a queue object the name."""
    offloaded(evt, "shop.a", queue="mail")
    on(evt, offload=Offload(queue=Queue("post")), name="shop.b")(lambda sender: None)
    emit(evt)
    assert {entry.handler: entry.queue for entry in outbox.deliveries()} == {
        "shop.a": "mail",
        "shop.b": "post",
    }


def test_options_that_are_not_json_are_an_error(evt: Event, app: Celery) -> None:
    """Options that are not JSON raise at the emit; the error names the handler, and no row is left."""
    offloaded(evt, "shop.a", headers={"when": datetime.now(UTC)})
    with pytest.raises(OptionNotSerializable, match=r"shop\.a"):
        emit(evt)
    assert outbox.deliveries() == []


def test_a_rolled_back_row_is_not_published(evt: Event, app: Celery, sent: Sent) -> None:
    """A rolled-back emission leaves neither a row nor a message."""
    offloaded(evt, "shop.a")
    with pytest.raises(ZeroDivisionError), transaction():
        emit(evt, "ada")
        raise ZeroDivisionError
    assert outbox.deliveries() == []
    assert outbox.delivery_rows() == []
    assert sent() == []
