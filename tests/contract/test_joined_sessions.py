"""Sessions that an emit joins: of any mapped instance, at any depth, begun or written in any way."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pydantic import BaseModel
from sqlalchemy import Engine, delete, insert, text, update
from sqlalchemy.event import listens_for
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlmodel import Field, Relationship, SQLModel, create_engine
from sqlmodel import Session as ModelSession

from nitro.errors import PayloadError, TransactionError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, drain, on
from nitro.infrastructure.offload import bind

Sent = Callable[..., list[Any]]


class Basket(SQLModel, table=True):
    """A plain table with ids from the database."""

    __tablename__ = "joined_basket"

    id: int | None = Field(default=None, primary_key=True)
    note: str = ""
    apples: list["Apple"] = Relationship(back_populates="basket")


class Apple(SQLModel, table=True):
    """A member of a basket, with a relationship in both directions."""

    __tablename__ = "joined_apple"

    id: int | None = Field(default=None, primary_key=True)
    basket_id: int | None = Field(default=None, foreign_key="joined_basket.id")
    basket: Basket | None = Relationship(back_populates="apples")


class Tag(SQLModel, table=True):
    """A row that refers to a basket, which has no relationship back."""

    __tablename__ = "joined_tag"

    id: int | None = Field(default=None, primary_key=True)
    basket_id: int | None = Field(default=None, foreign_key="joined_basket.id")
    basket: Basket | None = Relationship()


class Base(DeclarativeBase):
    """The declarative base of the user's own."""


class Ledger(Base):
    """A declarative class."""

    __tablename__ = "joined_ledger"

    id: Mapped[int] = mapped_column(primary_key=True)


@dataclass
class Carried:
    """A dataclass that holds a basket."""

    basket: Any


class Wrapped(BaseModel):
    """A pydantic model that holds a basket."""

    basket: Basket


HOLDERS: dict[str, Callable[[Basket], Any]] = {
    "itself": lambda basket: basket,
    "list": lambda basket: [basket],
    "dict": lambda basket: {"baskets": [basket]},
    "dataclass": Carried,
    "model": lambda basket: Wrapped.model_construct(basket=basket),
    "relationship": lambda basket: Carried([{"tag": Tag(basket=basket)}]),
}

WRITES: dict[str, Callable[[Session], Any]] = {
    "begun": lambda session: session.begin(),
    "savepoint": lambda session: session.begin_nested(),
    "read, then savepoint": lambda session: (session.get(Basket, 1), session.begin_nested()),
    "pending": lambda session: session.add(Basket()),
    "flushed": lambda session: (session.add(Basket()), session.flush()),
    "changed": lambda session: setattr(session.get_one(Basket, 1), "note", "new"),
    "deleted": lambda session: (session.delete(session.get_one(Basket, 2)), session.flush()),
    "merged": lambda session: session.merge(Basket(id=1, note="merged")),
    "ORM insert": lambda session: session.execute(insert(Basket), [{"note": "a"}]),
    "ORM update": lambda session: session.execute(update(Basket).values(note="b")),
    "ORM delete": lambda session: session.execute(delete(Basket).where(Basket.note == "none")),
    "bulk save": lambda session: session.bulk_save_objects([Basket()]),
    "bulk insert": lambda session: session.bulk_insert_mappings(Basket.__mapper__, [{"note": "c"}]),  # type: ignore[attr-defined]
    "bulk update": lambda session: session.bulk_update_mappings(Basket.__mapper__, [{"id": 1, "note": "d"}]),  # type: ignore[attr-defined]
    "query update": lambda session: session.query(Basket).update({"note": "e"}),
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database of the user's own with two baskets."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    SQLModel.metadata.create_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Basket(id=1), Basket(id=2)])
    yield engine
    engine.dispose()


@pytest.fixture
def tracked(evt: Event, app: Celery, engine: Engine) -> Event:
    """An event with a handler that is tracked in the user's database, where a lock fails at once."""
    bind(app, engine)
    listens_for(engine, "connect")(lambda driver, _record: driver.execute("PRAGMA busy_timeout=0"))
    on(evt, offload=True, name="shop.pick")(lambda sender, *args, **kwargs: None)
    return evt


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "pending"])
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("where", ["sender", "argument", "keyword"])
def test_an_instance_at_any_depth_is_joined(
    tracked: Event, engine: Engine, sent: Sent, where: str, holder: str, flushed: bool, end: str
) -> None:
    """A message about an instance leaves with the commit of its session, and never after a rollback."""
    with ModelSession(engine) as session:
        session.add(basket := Basket())
        if flushed:
            session.flush()
        value = HOLDERS[holder](basket)
        calls: dict[str, Callable[[], Any]] = {
            "sender": lambda: tracked.emit(value),
            "argument": lambda: tracked.emit("till", value),
            "keyword": lambda: tracked.emit("till", value=value),
        }
        calls[where]()
        assert sent() == []
        getattr(session, end)()
    assert len(sent()) == (1 if end == "commit" else 0)


@pytest.mark.parametrize("write", WRITES)
def test_a_session_that_somebody_will_commit_is_joined(tracked: Event, engine: Engine, sent: Sent, write: str) -> None:
    """A rollback drops emissions about a read instance, however the session was begun or written in."""
    with Session(engine) as session:
        WRITES[write](session)
        tracked.emit([session.get_one(Basket, 1)])
        session.rollback()
    assert sent() == []


def test_a_factory_that_begins_is_joined(tracked: Event, engine: Engine, sent: Sent) -> None:
    """Emissions leave with the commit of `with sessionmaker.begin()`, and never after its rollback."""
    factory = sessionmaker(engine)
    with pytest.raises(ZeroDivisionError), factory.begin() as session:
        session.add(basket := Basket())
        tracked.emit(basket)
        raise ZeroDivisionError
    assert sent() == []
    with factory.begin() as session:
        tracked.emit([session.get_one(Basket, 1)])
        assert sent() == []
    assert len(sent()) == 1


def test_a_savepoint_in_a_session_that_has_only_read_takes_its_own(tracked: Event, engine: Engine, sent: Sent) -> None:
    """A savepoint's rollback drops its own emissions; an earlier one has been committed by itself."""
    with Session(engine) as session:
        tracked.emit(session.get_one(Basket, 1), step="before")
        session.rollback()
        basket = session.get_one(Basket, 1)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            tracked.emit(basket, step="in it")
            raise ZeroDivisionError
        session.commit()
    assert [message.payload.kwargs["step"] for message in sent()] == ["before"]


def test_an_emit_after_another_one_waits_for_no_lock_of_its_own(tracked: Event, engine: Engine, sent: Sent) -> None:
    """Nitro's row in a session counts as a write, so that a second emit does not wait for its lock."""
    with Session(engine) as session:
        basket = session.get_one(Basket, 1)
        with session.begin_nested():
            tracked.emit(basket)
        tracked.emit(basket)
        session.commit()
    assert len(sent()) == 2


def test_a_pending_instance_has_its_id(tracked: Event, engine: Engine, sent: Sent) -> None:
    """The emit flushes a pending instance, and the handler gets it with its id."""
    with Session(engine) as session:
        session.add(basket := Basket(note="new"))
        tracked.emit("till", baskets={"new": basket})
        assert basket.id is not None
        session.commit()
        (message,) = sent()
        assert message.payload.kwargs["baskets"]["new"].id == basket.id


def test_a_pending_instance_can_be_reloaded(evt: Event, app: Celery, engine: Engine, sent: Sent) -> None:
    """A pending instance can be offloaded with `entity="reload"`, because the emit flushes it."""
    bind(app, engine)
    on(evt, offload={"entity": "reload"}, name="shop.pick")(lambda sender: None)
    with Session(engine) as session:
        session.add(basket := Basket())
        evt.emit([basket])
        session.commit()
    assert len(sent()) == 1


def test_a_pending_member_of_a_stored_instance_has_its_id(tracked: Event, engine: Engine, sent: Sent) -> None:
    """A pending member of a relationship is flushed, because it is part of the payload."""
    with Session(engine) as session:
        basket = session.get_one(Basket, 1)
        basket.apples.append(Apple())
        tracked.emit(basket)
        assert basket.apples[0].id is not None
        session.commit()
    assert len(sent()) == 1


def test_nothing_is_flushed_for_handlers_that_run_here(evt: Event, engine: Engine) -> None:
    """Inline handlers get a pending instance without a flush."""
    on(evt)(lambda sender: None)
    with Session(engine) as session:
        session.add(basket := Basket())
        evt.emit(basket)
        assert basket.id is None


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_async_handlers_wait_for_a_declarative_instance(evt: Event, engine: Engine, app: Celery, end: str) -> None:
    """Async inline handlers start after the commit, also for an instance that the codec need not support."""
    lengths: list[int] = []

    @on(evt)
    async def handler(sender: list[Ledger]) -> None:
        lengths.append(len(sender))

    with Session(engine) as session:
        session.add(ledger := Ledger())
        evt.emit([ledger])
        assert drain(1)
        assert lengths == []
        getattr(session, end)()
    assert drain(5)
    assert lengths == ([1] if end == "commit" else [])


def test_an_emit_in_a_listener_of_the_flush_is_joined(tracked: Event, engine: Engine, sent: Sent) -> None:
    """An instance in `after_insert` has an id and is not flushed a second time."""
    listens_for(Basket, "after_insert", once=True)(lambda _mapper, _connection, basket: tracked.emit(basket) and None)
    with Session(engine) as session:
        session.add(basket := Basket())
        session.commit()
        assert [message.payload.sender.id for message in sent()] == [basket.id]


def test_an_emit_in_a_listener_of_the_commit_commits_by_itself(tracked: Event, engine: Engine, sent: Sent) -> None:
    """An emit in `after_commit` commits by itself."""
    with Session(engine) as session:
        session.add(basket := Basket())
        listens_for(session, "after_commit", once=True)(lambda _session: tracked.emit([basket]))
        session.commit()
        assert len(sent()) == 1


def test_an_emit_before_the_insert_says_that_there_is_no_id(tracked: Event, engine: Engine) -> None:
    """An emit in `before_insert` raises, because the database has not given an id yet."""
    listens_for(Basket, "before_insert", once=True)(lambda _mapper, _connection, basket: tracked.emit(basket) and None)
    with Session(engine) as session, pytest.raises(TransactionError, match=r"Basket has no primary key.*after_insert"):
        session.add(Basket())
        session.flush()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Engine]:
    """A second database."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    SQLModel.metadata.create_all(other)
    yield other
    other.dispose()


@pytest.mark.parametrize("holder", HOLDERS)
def test_two_databases_are_an_error_at_any_depth(
    tracked: Event, engine: Engine, other: Engine, sent: Sent, holder: str
) -> None:
    """Instances of two databases raise an error that names both, and neither session is flushed."""
    with Session(engine) as one, Session(other) as another:
        one.add(basket := Basket())
        another.add(other_basket := Basket())
        with pytest.raises(TransactionError, match=r"other\.db.*own\.db|own\.db.*other\.db"):
            tracked.emit(HOLDERS[holder](basket), there=HOLDERS[holder](other_basket))
        assert basket.id is other_basket.id is None
        one.commit()
        another.commit()
    assert sent() == []


@pytest.mark.parametrize("block", ["transaction()", "another session"])
def test_two_sessions_that_write_in_one_database_are_an_error(
    tracked: Event, engine: Engine, sent: Sent, block: str
) -> None:
    """Two writing sessions raise an error, because one of two commits could fail alone."""
    with (
        Session(engine) as session,
        pytest.raises(TransactionError, match=r"two commits.*Basket.*transaction\(session\)"),
    ):
        session.add(basket := Basket())
        if block == "transaction()":
            with transaction():
                tracked.emit(basket)
        else:
            with Session(engine) as second:
                second.add(rival := Basket())
                tracked.emit(basket, rival=rival)
    assert sent() == []


def test_a_session_that_was_begun_and_has_only_read_is_no_rival(tracked: Event, engine: Engine, sent: Sent) -> None:
    """An emit about a reading and a writing session joins the writing one."""
    with Session(engine) as reader, reader.begin(), Session(engine) as writer:
        read = reader.get_one(Basket, 1)
        writer.add(written := Basket())
        tracked.emit(read, written=written)
        writer.commit()
        assert len(sent()) == 1


# AsyncSession


@pytest.fixture
def awaiting(engine: Engine) -> Callable[[Callable[[AsyncSession], Coroutine[Any, Any, None]]], None]:
    """A function that runs a coroutine function with an `AsyncSession`, which is closed at the end."""
    url = engine.url.set(drivername="sqlite+aiosqlite")

    async def within(work: Callable[[AsyncSession], Coroutine[Any, Any, None]]) -> None:
        async_engine = create_async_engine(url)
        try:
            async with AsyncSession(async_engine, expire_on_commit=False) as session:
                await work(session)
        finally:
            await async_engine.dispose()

    return lambda work: asyncio.run(within(work))


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_emit_async_flushes_an_async_session(tracked: Event, sent: Sent, awaiting: Any, end: str) -> None:
    """`emit_async` flushes an AsyncSession, and the message leaves with its commit."""

    async def work(session: AsyncSession) -> None:
        session.add(basket := Basket())
        await tracked.emit_async([basket])
        assert basket.id is not None
        assert sent() == []
        await getattr(session, end)()

    awaiting(work)
    assert len(sent()) == (1 if end == "commit" else 0)


@pytest.mark.parametrize("vanished", [False, True])
def test_emit_async_reads_expired_columns_of_an_async_session(
    tracked: Event, sent: Sent, awaiting: Any, vanished: bool
) -> None:
    """Expired columns are read again; a row that is gone raises an error about it."""

    async def work(session: AsyncSession) -> None:
        basket = await session.get_one(Basket, 1)
        basket.note = "ripe"
        await session.commit()
        session.expire(basket)
        if vanished:
            await session.execute(delete(Basket), execution_options={"synchronize_session": False})
        with pytest.raises(PayloadError, match="could not be read again") if vanished else nullcontext():
            await tracked.emit_async("till", [basket])
        await session.commit()

    awaiting(work)
    assert [message.payload.args[0][0].note for message in sent()] == ([] if vanished else ["ripe"])


def test_emit_cannot_flush_an_async_session(tracked: Event, sent: Sent, awaiting: Any) -> None:
    """`emit` with an AsyncSession raises for an instance without an id, and joins with one that has it."""

    async def work(session: AsyncSession) -> None:
        session.add(basket := Basket())
        with pytest.raises(TransactionError, match=r"Basket has no primary key.*await session\.flush\(\).*emit_async"):
            tracked.emit({"basket": basket})
        session.expunge(basket)
        session.add(keyed := Basket(id=7))
        tracked.emit({"basket": keyed})
        assert sent() == []
        await session.commit()

    awaiting(work)
    (message,) = sent()
    assert message.payload.sender["basket"].id == 7


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_flushed_async_session_is_joined(tracked: Event, sent: Sent, awaiting: Any, end: str) -> None:
    """`emit` joins an AsyncSession that has been flushed."""

    async def work(session: AsyncSession) -> None:
        session.add(basket := Basket())
        await session.flush()
        tracked.emit("till", baskets=[basket])
        await getattr(session, end)()

    awaiting(work)
    assert len(sent()) == (1 if end == "commit" else 0)


# A connection with a transaction of its own, as fixtures of tests have it


@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "rollback_only"])
def test_nothing_tracked_leaves_before_the_transaction_around_the_session(
    tracked: Event, engine: Engine, sent: Sent, mode: Any
) -> None:
    """The commit of an inner session publishes nothing tracked; the outer transaction decides."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode=mode) as session:
            session.add(basket := Basket())
            tracked.emit(basket)
            session.commit()
            assert sent() == []
        outer.rollback()
    assert sent() == []
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM nitro_delivery")) == 0


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("mode", ["create_savepoint", "rollback_only"])
@pytest.mark.parametrize("begun_again", [False, True])
def test_a_session_that_has_only_read_shares_the_fate_of_the_transaction_around_it(
    tracked: Event, engine: Engine, mode: Any, ending: str, begun_again: bool
) -> None:
    """The explicit outer transaction decides, whether or not the session has begun again after its commit."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode=mode, expire_on_commit=False) as session:
            session.add(basket := Basket())
            session.commit()
            if begun_again:
                session.refresh(basket)
            tracked.emit(basket)
            session.commit()
        getattr(outer, ending)()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM nitro_delivery")) == (1 if ending == "commit" else 0)


def test_a_connection_without_a_transaction_of_its_own_changes_nothing(
    tracked: Event, engine: Engine, sent: Sent
) -> None:
    """The message leaves with the session's commit, because the connection has no outer transaction."""
    with engine.connect() as connection, Session(connection) as session:
        session.add(basket := Basket())
        tracked.emit(basket)
        session.commit()
        assert len(sent()) == 1
