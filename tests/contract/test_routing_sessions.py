"""Sessions with several databases: rows are written where the session writes, by whatever it decides."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from celery import Celery
from sqlalchemy import Delete, Engine, Insert, Update, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlmodel import Field, SQLModel

from nitro.domain.entities.base_entity import Entity
from nitro.errors import TransactionError
from nitro.infrastructure.database import transaction
from nitro.infrastructure.events import Event, on
from nitro.infrastructure.offload import bind

Sent: TypeAlias = Callable[..., list[Any]]


class Trip(SQLModel, table=True):
    """Something that the session routes."""

    __tablename__ = "routed_trip"

    id: int | None = Field(default=None, primary_key=True)


class Driver(Entity, table=True):
    """Something that may be kept elsewhere."""

    __tablename__ = "routed_driver"


def database(path: Path) -> Engine:
    """A database with all tables and a trip."""
    engine = create_engine(f"sqlite:///{path}")
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Trip(id=1))
    return engine


@pytest.fixture
def main(tmp_path: Path) -> Iterator[Engine]:
    """The database of Nitro's rows."""
    yield (engine := database(tmp_path / "main.db"))
    engine.dispose()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Engine]:
    """Another one, such as a replica."""
    yield (engine := database(tmp_path / "side.db"))
    engine.dispose()


@pytest.fixture
def left(evt: Event, app: Celery, main: Engine) -> Event:
    """An event with a tracked handler."""
    bind(app, main)
    on(evt, offload=True, name="shop.leave")(lambda sender, **kwargs: None)
    return evt


def recipe(self: Any, mapper: Any = None, clause: Any = None) -> Engine:
    """As SQLAlchemy's documentation routes: what is flushed, updated or deleted, to the writer."""
    writes = self._flushing or isinstance(clause, (Update, Delete))
    return self.info["writer" if writes else "reader"]  # type: ignore[no-any-return]


def by_flush(self: Any, mapper: Any = None, **kwargs: Any) -> Engine:
    """What is flushed, to the writer."""
    return self.info["writer" if self._flushing else "reader"]  # type: ignore[no-any-return]


def by_clause(self: Any, mapper: Any = None, clause: Any = None, **kwargs: Any) -> Engine:
    """All that writes, to the writer."""
    writes = self._flushing or isinstance(clause, (Insert, Update, Delete))
    return self.info["writer" if writes else "reader"]  # type: ignore[no-any-return]


def by_class(self: Any, mapper: Any = None, clause: Any = None, **kwargs: Any) -> Engine:
    """Trips to the writer, all that has no mapper to the reader."""
    return self.info["writer" if mapper is not None and mapper.class_ is Trip else "reader"]  # type: ignore[no-any-return]


ROUTES = {"recipe": recipe, "by flush": by_flush, "by clause": by_clause, "by class": by_class}

BINDS: dict[str, Callable[[Engine, Engine], dict[str, Any]]] = {
    "table": lambda main, side: {"binds": {Trip.__table__: main, Driver: side}},  # type: ignore[attr-defined]
    "class": lambda main, side: {"binds": {Trip: main, Driver: side}},
    "base": lambda main, side: {"binds": {SQLModel: main, Driver: side}},
    "default": lambda main, side: {"bind": main, "binds": {Driver: side}},
}


def routing(route: Callable[..., Engine], writer: Engine, reader: Engine) -> Session:
    """A session that routes its statements."""
    kind: type[Session] = type("Routing", (Session,), {"get_bind": route})
    return kind(info={"writer": writer, "reader": reader})


@pytest.fixture(params=[*ROUTES, *BINDS])
def several(request: pytest.FixtureRequest, main: Engine, side: Engine) -> Iterator[Session]:
    """A session with two databases, in each of these ways: by `get_bind` or by `binds=`."""
    route, binds = ROUTES.get(request.param), BINDS.get(request.param)
    with routing(route, main, side) if route else Session(**binds(main, side) if binds else {}) as session:
        yield session


def check_joined(session: Session, event: Event, sent: Sent) -> None:
    """An emit leaves with the commit of this session, and dies with its rollback."""
    session.add(trip := Trip())
    event.emit([trip])
    session.rollback()
    assert sent() == []
    session.add(trip := Trip())
    event.emit("till", trip=trip)
    assert sent() == []
    session.commit()
    assert len(sent()) == 1


def test_a_session_with_several_databases_is_joined(several: Session, left: Event, sent: Sent) -> None:
    """The row is written on the connection of the instance."""
    check_joined(several, left, sent)


def test_one_that_has_only_read_is_joined_if_it_was_begun(several: Session, left: Event, sent: Sent) -> None:
    """There is no flush to learn from."""
    with several.begin():
        left.emit(several.get(Trip, 1))
        assert sent() == []
    assert len(sent()) == 1


@pytest.mark.parametrize("several", ["recipe", "by flush", "by clause", *BINDS], indirect=True)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_one_can_be_adopted(several: Session, left: Event, sent: Sent, end: str) -> None:
    """With emits that name no instance of it, and a block inside, which is a savepoint."""
    try:
        with transaction(several):
            left.emit("till")
            with pytest.raises(LookupError), transaction():
                left.emit("dropped")
                raise LookupError
            if end == "rollback":
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [message.payload.sender for message in sent()] == (["till"] if end == "commit" else [])


def test_one_that_sends_what_has_no_mapper_elsewhere_says_so(left: Event, main: Engine, side: Engine) -> None:
    """An emit that names no instance gives no other hint; the message names both databases."""
    with (
        routing(by_class, main, side) as session,
        pytest.raises(TransactionError, match=r"side\.db.*main\.db"),
        transaction(session),
    ):
        left.emit("till")


def test_a_reader_of_the_same_database_is_not_written_on(left: Event, sent: Sent, main: Engine) -> None:
    """Its connection may commit at once, so that a rollback would take nothing back."""
    reader = main.execution_options(isolation_level="AUTOCOMMIT")
    with routing(recipe, main, reader) as session:
        check_joined(session, left, sent)


def test_a_bulk_insert_of_a_session_that_routes_is_joined(left: Event, sent: Sent, main: Engine, side: Engine) -> None:
    """It is no flush."""
    with routing(by_clause, main, side) as session:
        session.execute(insert(Trip), [{"id": 5}])
        left.emit(session.get(Trip, 1))
        session.rollback()
    assert sent() == []


def test_an_instance_of_another_database_is_an_error_that_names_both(
    left: Event, sent: Sent, main: Engine, side: Engine
) -> None:
    """Its session has no connection to Nitro's."""
    with Session(binds={Driver: side}) as session:
        session.add(driver := Driver())
        with pytest.raises(TransactionError, match=r"side\.db.*main\.db"):
            left.emit([driver])
    assert sent() == []


def test_two_sessions_with_binds_for_two_databases_are_an_error(left: Event, main: Engine, side: Engine) -> None:
    """The message names both."""
    with Session(binds={Trip: main}) as one, Session(binds={Driver: side}) as other:
        one.add(trip := Trip())
        other.add(driver := Driver())
        with pytest.raises(TransactionError, match=r"main\.db.*side\.db"):
            left.emit(trip, driver=[driver])


def test_an_engine_with_options_is_the_same_database(left: Event, sent: Sent, main: Engine) -> None:
    """It shares the pool."""
    with Session(main.execution_options(stream_results=False)) as session:
        check_joined(session, left, sent)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("kind", ["binds", "routing"])
def test_an_async_session_with_several_databases_is_joined(
    left: Event, sent: Sent, main: Engine, side: Engine, kind: str, end: str
) -> None:
    """Nothing in it says that it is one, but that it must be awaited."""
    writer, reader = (create_async_engine(one.url.set(drivername="sqlite+aiosqlite")) for one in (main, side))
    routed: type[Session] = type("Routing", (Session,), {"get_bind": recipe})
    info = {"writer": writer.sync_engine, "reader": reader.sync_engine}

    async def work() -> None:
        options: dict[str, Any] = {"sync_session_class": routed, "info": info} if kind == "routing" else {}
        async with AsyncSession(**(options or {"binds": {Trip: writer, Driver: reader}})) as session:
            session.add(trip := Trip())
            await left.emit_async([trip])
            left.emit({"trip": trip})
            assert sent() == []
            await getattr(session, end)()
        await writer.dispose()
        await reader.dispose()

    asyncio.run(work())
    assert len(sent()) == (2 if end == "commit" else 0)


def test_entities_are_read_and_saved_in_one_with_binds(left: Event, main: Engine, side: Engine) -> None:
    """Nothing asks it for a bind that it has not."""
    with Session(binds={Driver: side}) as session, transaction(session):
        Driver(id="d1").save()
        assert Driver.get("d1") is not None
    with Session(side) as session:
        assert session.get(Driver, "d1") is not None
