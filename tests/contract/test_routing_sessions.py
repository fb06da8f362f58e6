"""A session with several databases has the outbox's rows written to the database that it writes to."""

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
    """A table that the session routes."""

    __tablename__ = "routed_trip"

    id: int | None = Field(default=None, primary_key=True)


class Driver(Entity, table=True):
    """An entity that may be stored in another database."""

    __tablename__ = "routed_driver"


def database(path: Path) -> Engine:
    """Returns a database with all tables and a trip."""
    engine = create_engine(f"sqlite:///{path}")
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Trip(id=1))
    return engine


@pytest.fixture
def main(tmp_path: Path) -> Iterator[Engine]:
    """The database with the outbox."""
    yield (engine := database(tmp_path / "main.db"))
    engine.dispose()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Engine]:
    """A second database, such as a replica."""
    yield (engine := database(tmp_path / "side.db"))
    engine.dispose()


@pytest.fixture
def departed(evt: Event, app: Celery, main: Engine) -> Event:
    """An event with a tracked handler."""
    bind(app, main)
    on(evt, offload=True, name="shop.leave")(lambda sender, **kwargs: None)
    return evt


def recipe(self: Any, mapper: Any = None, clause: Any = None) -> Engine:
    """Routes flushes, updates and deletes to the writer, as in SQLAlchemy's documentation."""
    writes = self._flushing or isinstance(clause, (Update, Delete))
    return self.info["writer" if writes else "reader"]  # type: ignore[no-any-return]


def by_flush(self: Any, mapper: Any = None, **kwargs: Any) -> Engine:
    """Routes flushes to the writer."""
    return self.info["writer" if self._flushing else "reader"]  # type: ignore[no-any-return]


def by_clause(self: Any, mapper: Any = None, clause: Any = None, **kwargs: Any) -> Engine:
    """Routes all writing statements to the writer."""
    writes = self._flushing or isinstance(clause, (Insert, Update, Delete))
    return self.info["writer" if writes else "reader"]  # type: ignore[no-any-return]


def by_class(self: Any, mapper: Any = None, clause: Any = None, **kwargs: Any) -> Engine:
    """Routes trips to the writer, and everything else to the reader."""
    return self.info["writer" if mapper is not None and mapper.class_ is Trip else "reader"]  # type: ignore[no-any-return]


ROUTES = {"recipe": recipe, "by flush": by_flush, "by clause": by_clause, "by class": by_class}

BINDS: dict[str, Callable[[Engine, Engine], dict[str, Any]]] = {
    "table": lambda main, side: {"binds": {Trip.__table__: main, Driver: side}},  # type: ignore[attr-defined]
    "class": lambda main, side: {"binds": {Trip: main, Driver: side}},
    "base": lambda main, side: {"binds": {SQLModel: main, Driver: side}},
    "default": lambda main, side: {"bind": main, "binds": {Driver: side}},
}


def routing(route: Callable[..., Engine], writer: Engine, reader: Engine) -> Session:
    """Returns a session that routes its statements."""
    kind: type[Session] = type("Routing", (Session,), {"get_bind": route})
    return kind(info={"writer": writer, "reader": reader})


@pytest.fixture(params=[*ROUTES, *BINDS])
def several(request: pytest.FixtureRequest, main: Engine, side: Engine) -> Iterator[Session]:
    """A session with two databases, by `get_bind` or by `binds=`."""
    route, binds = ROUTES.get(request.param), BINDS.get(request.param)
    with routing(route, main, side) if route else Session(**binds(main, side) if binds else {}) as session:
        yield session


def check_joined(session: Session, event: Event, sent: Sent) -> None:
    """Asserts that an emit leaves with the session's commit and is dropped by its rollback."""
    session.add(trip := Trip())
    event.emit([trip])
    session.rollback()
    assert sent() == []
    session.add(trip := Trip())
    event.emit("till", trip=trip)
    assert sent() == []
    session.commit()
    assert len(sent()) == 1


def test_a_session_with_several_databases_is_joined(several: Session, departed: Event, sent: Sent) -> None:
    """An emit joins a session with several databases; its row is written on the entity's connection."""
    check_joined(several, departed, sent)


def test_one_that_has_only_read_is_joined_if_it_was_begun(several: Session, departed: Event, sent: Sent) -> None:
    """An emit joins a session that was begun and has only read."""
    with several.begin():
        departed.emit(several.get(Trip, 1))
        assert sent() == []
    assert len(sent()) == 1


@pytest.mark.parametrize("several", ["recipe", "by flush", "by clause", *BINDS], indirect=True)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_one_can_be_adopted(several: Session, departed: Event, sent: Sent, end: str) -> None:
    """`transaction(session)` adopts a session with several databases; an inner block is a savepoint."""
    try:
        with transaction(several):
            departed.emit("till")
            with pytest.raises(LookupError), transaction():
                departed.emit("dropped")
                raise LookupError
            if end == "rollback":
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [message.payload.sender for message in sent()] == (["till"] if end == "commit" else [])


def test_one_that_sends_what_has_no_mapper_elsewhere_says_so(departed: Event, main: Engine, side: Engine) -> None:
    """An emit without an entity raises if statements without mapper go elsewhere; the error names both databases."""
    with (
        routing(by_class, main, side) as session,
        pytest.raises(TransactionError, match=r"side\.db.*main\.db"),
        transaction(session),
    ):
        departed.emit("till")


def test_a_reader_of_the_same_database_is_not_written_on(departed: Event, sent: Sent, main: Engine) -> None:
    """A reader with AUTOCOMMIT on the same database is not used for rows, so that a rollback drops them."""
    reader = main.execution_options(isolation_level="AUTOCOMMIT")
    with routing(recipe, main, reader) as session:
        check_joined(session, departed, sent)


def test_a_bulk_insert_of_a_session_that_routes_is_joined(
    departed: Event, sent: Sent, main: Engine, side: Engine
) -> None:
    """A bulk insert, which is no flush, makes an emit join the session."""
    with routing(by_clause, main, side) as session:
        session.execute(insert(Trip), [{"id": 5}])
        departed.emit(session.get(Trip, 1))
        session.rollback()
    assert sent() == []


def test_an_instance_of_another_database_is_an_error_that_names_both(
    departed: Event, sent: Sent, main: Engine, side: Engine
) -> None:
    """An entity of another database raises an error that names both databases."""
    with Session(binds={Driver: side}) as session:
        session.add(driver := Driver())
        with pytest.raises(TransactionError, match=r"side\.db.*main\.db"):
            departed.emit([driver])
    assert sent() == []


def test_two_sessions_with_binds_for_two_databases_are_an_error(departed: Event, main: Engine, side: Engine) -> None:
    """Two sessions with binds for two databases raise an error that names both."""
    with Session(binds={Trip: main}) as trips, Session(binds={Driver: side}) as drivers:
        trips.add(trip := Trip())
        drivers.add(driver := Driver())
        with pytest.raises(TransactionError, match=r"main\.db.*side\.db"):
            departed.emit(trip, driver=[driver])


def test_an_engine_with_options_is_the_same_database(departed: Event, sent: Sent, main: Engine) -> None:
    """An engine with execution options counts as the same database."""
    with Session(main.execution_options(stream_results=False)) as session:
        check_joined(session, departed, sent)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("kind", ["binds", "routing"])
def test_an_async_session_with_several_databases_is_joined(
    departed: Event, sent: Sent, main: Engine, side: Engine, kind: str, end: str
) -> None:
    """An emit joins an AsyncSession with several databases."""
    writer, reader = (create_async_engine(one.url.set(drivername="sqlite+aiosqlite")) for one in (main, side))
    routed: type[Session] = type("Routing", (Session,), {"get_bind": recipe})
    info = {"writer": writer.sync_engine, "reader": reader.sync_engine}

    async def work() -> None:
        options: dict[str, Any] = {"sync_session_class": routed, "info": info} if kind == "routing" else {}
        async with AsyncSession(**(options or {"binds": {Trip: writer, Driver: reader}})) as session:
            session.add(trip := Trip())
            await departed.emit_async([trip])
            departed.emit({"trip": trip})
            assert sent() == []
            await getattr(session, end)()
        await writer.dispose()
        await reader.dispose()

    asyncio.run(work())
    assert len(sent()) == (2 if end == "commit" else 0)


def test_entities_are_read_and_saved_in_one_with_binds(departed: Event, main: Engine, side: Engine) -> None:
    """Entities are read and saved in an adopted session with binds."""
    with Session(binds={Driver: side}) as session, transaction(session):
        Driver(id="d1").save()
        assert Driver.get("d1") is not None
    with Session(side) as session:
        assert session.get(Driver, "d1") is not None
