"""`on_error="log"` inside a transaction: a handler that fails is undone alone, contract sections 3 and 7."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import event as listened
from sqlalchemy import exc, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import object_session
from sqlmodel import Session

from nitro.domain.entities.base_entity import Entity
from nitro.infrastructure import database
from nitro.infrastructure.database import current_transaction, transaction
from nitro.infrastructure.events import Emission, Event, emit, emit_async, on
from support import outbox

Sent = Callable[..., list[Any]]


class Coupon(Entity, table=True):
    __tablename__ = "logged_failures_coupon"

    note: str = ""


@pytest.fixture(autouse=True)
def clean(database_kind: str, app: Celery) -> None:
    """An empty table in a database of each kind."""
    database.create_tables()
    Coupon.delete_where(Coupon.id != "")


@pytest.fixture
def notified() -> Event:
    """An event with an offloaded handler."""
    event = Event("notified")
    on(event, offload=True, name="shop.notified")(lambda sender, **kwargs: None)
    return event


def stored() -> tuple[list[str], int]:
    """Returns the ids of the coupons, and the number of deliveries."""
    with database.engine().connect() as connection:
        return sorted(connection.scalars(select(Coupon.id))), outbox.count_deliveries(connection)


def duplicate() -> None:
    """Inserts a row that exists already."""
    current = current_transaction()
    assert current is not None
    current.session.execute(text("INSERT INTO logged_failures_coupon (id, note) VALUES ('c0', '')"))


def broken_flush() -> None:
    """Flushes a failing INSERT, after which the session is unusable without a savepoint."""
    current = current_transaction()
    assert current is not None
    current.session.add_all([Coupon(id="d", note="1"), Coupon(id="d", note="2")])
    current.session.flush()


def wrong_sql() -> None:
    """Executes a statement that aborts a transaction of PostgreSQL."""
    current = current_transaction()
    assert current is not None
    current.session.execute(text("SELECT * FROM nowhere"))


def own_error() -> None:
    """Raises an error that has nothing to do with the database."""
    raise LookupError("no such thing")


FAILURES = pytest.mark.parametrize("failure", [duplicate, broken_flush, wrong_sql, own_error])


@FAILURES
def test_a_sync_handler_is_undone_alone(evt: Event, notified: Event, failure: Callable[[], None]) -> None:
    """Saves and emissions of a failed handler are undone; the rest of the emission and of the block continues."""

    @on(evt, on_error="log", name="shop.failing", priority=1)
    def failing(sender: Coupon) -> None:
        emit(notified, Coupon(id="gone").save())
        failure()

    @on(evt)
    def next_one(sender: Coupon) -> str:
        Coupon(id="next").save()
        return "next"

    on(evt, offload=True, name="shop.queued")(lambda sender: None)
    with transaction():
        emission = emit(evt, Coupon(id="c0").save())
        Coupon(id="after").save()
    assert (list(emission), list(emission.failed)) == (["next"], ["shop.failing"])
    assert stored() == (["after", "c0", "next"], 1)


@FAILURES
def test_async_handlers_of_equal_priority_are_undone_each_alone(
    evt: Event, notified: Event, failure: Callable[[], None]
) -> None:
    """Async handlers of one transaction run in turn, so that their savepoints do not overlap."""

    def connect(number: int) -> None:
        @on(evt, on_error="log", name=f"shop.h{number}")
        async def handler(sender: Coupon) -> int:
            await asyncio.sleep(0)
            await emit_async(notified, Coupon(id=f"h{number}").save())
            await asyncio.sleep(0)
            if number % 2:
                failure()
            return number

    for number in range(4):
        connect(number)

    @on(evt)
    async def together(sender: Coupon) -> str:
        await asyncio.sleep(0)
        Coupon(id="together").save()
        return "together"

    async def place() -> Emission:
        async with transaction():
            emission = await emit_async(evt, Coupon(id="c0").save())
            Coupon(id="after").save()
            return emission

    emission = asyncio.run(place())
    assert (list(emission), list(emission.failed)) == ([0, 2, "together"], ["shop.h1", "shop.h3"])
    assert stored() == (["after", "c0", "h0", "h2", "together"], 2)


def test_a_sync_generator_and_a_function_that_returns_a_coroutine_are_undone_too(evt: Event) -> None:
    """Every kind of handler that fails is undone alone."""

    @on(evt, on_error="log", name="shop.generator")
    def generator(sender: Coupon) -> Iterator[int]:
        yield 1
        Coupon(id="gone").save()
        duplicate()

    async def awaited() -> None:
        Coupon(id="gone").save()
        duplicate()

    on(evt, on_error="log", name="shop.coroutine")(lambda sender: awaited())

    @on(evt, on_error="log", name="shop.pages")
    async def pages(sender: Coupon) -> Any:
        Coupon(id="gone").save()
        yield 1
        duplicate()

    async def place() -> Emission:
        with transaction():
            return await emit_async(evt, Coupon(id="c0").save())

    emission = asyncio.run(place())
    assert sorted(emission.failed) == ["shop.coroutine", "shop.generator", "shop.pages"]
    assert stored() == (["c0"], 0)


def test_emissions_of_concurrent_tasks_share_a_transaction(evt: Event) -> None:
    """Handlers of concurrent tasks run in turn, also handlers that emit."""
    inner = Event("inner")

    @on(inner, on_error="log")
    async def deepest(sender: str) -> None:
        await asyncio.sleep(0)
        Coupon(id=f"gone-{sender}").save()
        duplicate()

    @on(evt, on_error="log")
    async def handler(sender: str) -> None:
        await asyncio.sleep(0)
        await asyncio.gather(emit_async(inner, f"{sender}1"), emit_async(inner, f"{sender}2"))
        Coupon(id=sender).save()

    async def place() -> list[Emission]:
        async with transaction():
            Coupon(id="c0").save()
            return await asyncio.gather(*(emit_async(evt, sender) for sender in "abc"))

    assert [emission.failed for emission in asyncio.run(place())] == [{}, {}, {}]
    assert stored()[0] == ["a", "b", "c", "c0"]


def test_a_handler_inside_a_handler_is_undone_alone(evt: Event) -> None:
    """A failing handler in a handler is undone in its own savepoint, and the outer handler commits."""
    inner = Event("inner")

    @on(inner, on_error="log", name="shop.inner")
    def failing(sender: str) -> None:
        Coupon(id="gone").save()
        duplicate()

    @on(evt, on_error="log")
    def outer(sender: Coupon) -> object:
        Coupon(id="outer").save()
        return list(emit(inner, "ada").failed)

    with transaction():
        assert emit(evt, Coupon(id="c0").save()) == [["shop.inner"]]
    assert stored()[0] == ["c0", "outer"]


def test_a_handler_that_cancels_keeps_what_it_wrote(evt: Event) -> None:
    """The writes of a handler that cancels stay, because it has not failed."""

    @on(evt, on_error="log")
    def cancelling(sender: Coupon) -> bool:
        Coupon(id="kept").save()
        return False

    with transaction():
        assert emit(evt, Coupon(id="c0").save()).cancelled_by
    assert stored()[0] == ["c0", "kept"]


def test_a_session_of_the_users_own_is_protected_too(evt: Event, notified: Event) -> None:
    """An emit about an entity joins its session, and so do the savepoints of its handlers."""

    @on(evt, on_error="log", name="shop.failing")
    def failing(coupon: Coupon) -> None:
        session = object_session(coupon)
        assert session is not None
        session.add(gone := Coupon(id="gone"))
        emit(notified, gone)
        session.execute(text("SELECT * FROM nowhere"))

    with Session(database.engine()) as session:
        session.add(coupon := Coupon(id="c0"))
        session.flush()
        assert list(emit(evt, coupon).failed) == ["shop.failing"]
        session.add(Coupon(id="after"))
        session.commit()
    assert stored() == (["after", "c0"], 0)


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("failing", ["flush", "sql"])
def test_a_session_that_has_only_read_is_usable_afterwards(evt: Event, failing: str, awaited: bool) -> None:
    """An open session that has only read stays usable after a handler's failing statement."""
    Coupon(id="c0").save()

    @on(evt, on_error="log", name="shop.failing")
    def fail(coupon: Coupon) -> None:
        session = object_session(coupon)
        assert session is not None
        if failing == "flush":
            session.add_all([Coupon(id="d", note="1"), Coupon(id="d", note="2")])
            session.flush()
        session.execute(text("SELECT * FROM nowhere"))

    with Session(database.engine()) as session:
        coupon = session.scalars(select(Coupon)).one()
        emission = asyncio.run(emit_async(evt, coupon)) if awaited else emit(evt, coupon)
        assert list(emission.failed) == ["shop.failing"]
        assert session.scalars(select(Coupon.id)).all() == ["c0"]


def test_a_handlers_savepoint_is_no_reason_to_wait_for_a_session_that_has_only_read(
    evt: Event, notified: Event
) -> None:
    """Emissions about a session that has only read commit by themselves, in the handler and after it."""
    Coupon(id="c0").save()
    on(evt, on_error="log")(lambda coupon: emit(notified, coupon))
    on(evt, offload=True, name="shop.queued")(lambda sender: None)
    with Session(database.engine()) as session:
        emit(evt, session.scalars(select(Coupon)).one())
    assert stored() == (["c0"], 2)


def test_a_handler_may_end_the_users_transaction(evt: Event) -> None:
    """A commit inside a handler commits the whole transaction, as without a savepoint."""

    @on(evt, on_error="log")
    def committing(coupon: Coupon) -> None:
        session = object_session(coupon)
        assert session is not None
        session.commit()

    with Session(database.engine()) as session:
        session.add(coupon := Coupon(id="c0"))
        session.flush()
        assert emit(evt, coupon).failed == {}
        session.add(Coupon(id="c1"))
        session.commit()
    assert stored()[0] == ["c0", "c1"]


def test_a_database_error_that_the_handler_swallows_does_not_reach_the_rest(evt: Event) -> None:
    """A handler that suppresses a database error counts as failed, because its writes are undone."""

    @on(evt, on_error="log", name="shop.swallowing")
    def swallowing(sender: Coupon) -> None:
        Coupon(id="gone").save()
        with suppress(exc.DBAPIError):
            broken_flush()

    with transaction():
        assert list(emit(evt, Coupon(id="c0").save()).failed) == ["shop.swallowing"]
        Coupon(id="after").save()
    assert stored()[0] == ["after", "c0"]


def test_what_the_emitter_cannot_write_is_no_failure_of_the_handler(evt: Event) -> None:
    """Pending writes of the emitter that fail raise in the emitter, and no handler runs."""
    ran: list[object] = []
    on(evt, on_error="log")(lambda sender: ran.append(sender))
    with pytest.raises(exc.DBAPIError), transaction() as session:
        session.add_all([Coupon(id="d", note="1"), Coupon(id="d", note="2")])
        emit(evt, "ada")
    assert ran == []
    assert stored() == ([], 0)


def test_a_handler_runs_in_a_transaction_that_is_broken_already(evt: Event) -> None:
    """A handler runs in a transaction that can only be rolled back, for example to report the failure."""
    senders: list[object] = []
    on(evt, on_error="log")(lambda sender: senders.append(sender))
    with pytest.raises(exc.DBAPIError), transaction():
        try:
            broken_flush()
        except exc.DBAPIError:
            assert emit(evt, "ada").failed == {}
            raise
    assert senders == ["ada"]


def test_after_a_failure_in_sql_the_handler_runs_as_well(evt: Event) -> None:
    """A handler runs after failed SQL, although PostgreSQL has aborted the transaction."""
    senders: list[object] = []
    on(evt, on_error="log")(lambda sender: senders.append(sender))
    with pytest.raises(exc.DBAPIError), transaction():
        Coupon(id="c0").save()
        try:
            wrong_sql()
        except exc.DBAPIError:
            emit(evt, "ada")
            raise
    assert senders == ["ada"]


@contextmanager
def statements() -> Iterator[list[str]]:
    """Yields the list of all statements that are sent to the database inside."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    listened.listen(database.engine(), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        listened.remove(database.engine(), "before_cursor_execute", note)


@pytest.mark.parametrize("on_error", ["raise", "log"])
def test_outside_of_a_transaction_the_database_is_not_asked(evt: Event, on_error: Any) -> None:
    """Outside of a transaction an emit sends no statement, whatever `on_error` is."""
    on(evt, on_error=on_error)(lambda sender: None)
    coupon = Coupon(id="c0").save()
    with statements() as sent:
        emit(evt, coupon)
        asyncio.run(emit_async(evt, coupon))
    assert sent == []


# AsyncSession


def async_url() -> str:
    url = database.engine().url
    driver = "postgresql+psycopg" if url.get_backend_name() == "postgresql" else "sqlite+aiosqlite"
    return url.set(drivername=driver).render_as_string(hide_password=False)


@pytest.mark.parametrize("adopted", [False, True], ids=["own", "adopted"])
def test_an_async_session_is_protected_too(evt: Event, notified: Event, adopted: bool) -> None:
    """Async handlers that write in an AsyncSession each have their own savepoint."""

    def connect(number: int) -> None:
        @on(evt, on_error="log", name=f"shop.h{number}")
        async def handler(coupon: Coupon, session: AsyncSession) -> int:
            session.add(Coupon(id=f"h{number}"))
            await session.flush()
            await emit_async(notified, coupon)
            if number % 2:
                await session.execute(text("SELECT * FROM nowhere"))
            return number

    for number in range(4):
        connect(number)

    async def place() -> Emission:
        engine = create_async_engine(async_url())

        async def write(session: AsyncSession) -> Emission:
            session.add(coupon := Coupon(id="c0"))
            await session.flush()
            emission = await emit_async(evt, coupon, session=session)
            session.add(Coupon(id="after"))
            return emission

        try:
            async with AsyncSession(engine) as session:
                if not adopted:
                    emission = await write(session)
                    await session.commit()
                    return emission
                async with transaction(session):
                    return await write(session)
        finally:
            await engine.dispose()

    emission = asyncio.run(place())
    assert (list(emission), list(emission.failed)) == ([0, 2], ["shop.h1", "shop.h3"])
    assert stored() == (["after", "c0", "h0", "h2"], 2)


@pytest.mark.parametrize("awaits", [False, True], ids=["emit", "emit_async"])
def test_what_a_sync_handler_adds_to_an_async_session_is_taken_back(evt: Event, notified: Event, awaits: bool) -> None:
    """Additions of a failed sync handler to an AsyncSession are undone."""

    @on(evt, on_error="log", name="shop.failing")
    def failing(sender: Coupon) -> None:
        emit(notified, Coupon(id="gone").save())
        raise LookupError("no such thing")

    on(evt)(lambda sender: Coupon(id="next").save())

    async def place() -> Emission:
        engine = create_async_engine(async_url())
        try:
            async with AsyncSession(engine) as session, transaction(session):
                coupon = Coupon(id="c0").save()
                return await emit_async(evt, coupon) if awaits else emit(evt, coupon)
        finally:
            await engine.dispose()

    assert list(asyncio.run(place()).failed) == ["shop.failing"]
    assert stored() == (["c0", "next"], 0)
